"""Prediction with one covariance a class: ours beside Avalanche's FeCAM."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from avalanche.models import FeCAMClassifier
from avalanche.training.plugins import CurrentDataFeCAMUpdate
from torch import Tensor

from protocl.bench import Size, SpeedComparison
from protocl.bench.comparison import require_equal
from protocl.bench.synthetic import features
from protocl.bench.timing import Timed, interleaved
from protocl.heads.mahalanobis import Mahalanobis
from protocl.strategies.bench.peers import experience, frozen_features

TARGET = 80.0


def measure(size: Size) -> Iterator[SpeedComparison]:
    """One mini-batch through a head fitted on all samples.

    The fit is not part of it on either side: ours factorises the covariances there, once;
    Avalanche inverts all of them again in each forward pass.
    """
    ours, theirs = _timed(size)
    case = f"Mahalanobis prediction, {size.batch} x {size.width}, {size.classes} classes"
    difference = float((ours.result - theirs.result).abs().max())
    yield SpeedComparison(
        case=case,
        peer_name="Avalanche FeCAM forward",
        ours=ours.seconds,
        peer=theirs.seconds,
        kind="speedup",
        target=TARGET,
        threads=torch.get_num_threads(),
        difference=require_equal(case, difference, tolerance=1e-3),
    )


def _timed(size: Size) -> tuple[Timed[Tensor], Timed[Tensor]]:
    x, y = features(size)
    queries = x[: size.batch]
    peer = FeCAMClassifier()
    head = Mahalanobis.avalanche()
    head.fit(head.new_memory(size.width).update(x, y))
    with warnings.catch_warnings():
        # Avalanche copies each batch by torch.tensor(x), and torch complains about it.
        warnings.filterwarnings("ignore", message="To copy construct from a tensor")
        strategy = frozen_features(peer, experience(x, y), size.batch)
        CurrentDataFeCAMUpdate().after_training_exp(strategy)
        # Our first call would pay for what the peer's fit has already warmed up.
        head(queries)
        return interleaved(
            lambda: head(queries), lambda: peer(queries), repeats=min(size.repeats, 3)
        )
