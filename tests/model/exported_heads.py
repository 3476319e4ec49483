"""Print the table of ``docs/export.md``: ``python -m tests.model.exported_heads``."""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import torch
from sklearn.datasets import load_digits

from protocl.errors import PrecisionWarning
from protocl.heads import (
    BayesianPrototypes,
    Head,
    LinearDiscriminant,
    Mahalanobis,
    NearestMean,
    Ridge,
)
from protocl.model import Network, export_onnx
from protocl.model.export import largest_difference
from protocl.registry import HEADS

OPTIONS: dict[str, Head] = {
    "nearest_mean, cosine": NearestMean("cosine"),
    "lda, shrinkage auto": LinearDiscriminant("auto"),
    "ridge, 500 random features": Ridge(500),
    "ridge, 500 random features, float64": Ridge(500, dtype=torch.float64),
    "mahalanobis, low_rank": Mahalanobis(covariance="low_rank"),
    "mahalanobis, shared": Mahalanobis(covariance="shared"),
    "mahalanobis, fecam_vit": Mahalanobis.fecam_vit(),
    "bayesian, diag": BayesianPrototypes(covariance="diag"),
    "bayesian, full": BayesianPrototypes(covariance="full"),
}


def main() -> None:
    """Every registered head and some settings, fitted to 900 digits and asked about the others."""
    warnings.simplefilter("ignore", PrecisionWarning)
    x, y = load_digits(return_X_y=True)
    features, labels = torch.from_numpy(x).float() / 16, torch.from_numpy(y)
    heads = {name: HEADS.get(name)() for name in HEADS.names()} | OPTIONS
    sys.stdout.write("| head | largest difference |\n| --- | ---: |\n")
    with tempfile.TemporaryDirectory() as folder:
        for name, head in sorted(heads.items()):
            head.fit(head.new_memory(64).update(features[:900], labels[:900]))
            network = Network(None, head)
            path = export_onnx(network, features[:1], Path(folder, "head.onnx"))
            difference = largest_difference(network, features[900:], path)
            sys.stdout.write(f"| {name} | {difference:.1e} |\n")


if __name__ == "__main__":
    main()
