"""The model that each run leaves behind answers as the run did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protocl import load_model
from protocl.data import load_data
from protocl.model import PrototypeClassifier, TrainedClassifier
from protocl.registry import STRATEGIES
from protocl.runner.experiment import EXPERIMENT
from tests.runner.test_experiment import run

SMALL = (
    "benchmark=digits",
    "benchmark.n_experiences=2",
    "benchmark.classes=4",
    "benchmark.train_per_class=12",
    "seed=3",
)
TRAINED = (
    "backbone=conv4",
    "backbone.width=4",
    "backbone.image_size=16",
)


def confusion(folder: Path, model: Any, result: dict[str, Any]) -> np.ndarray:
    """Counts as in ``result.json``, from the answers of ``model``."""
    data = load_data(EXPERIMENT.from_yaml((folder / "config.yaml").read_text()).benchmark)
    places = {name: place for place, name in enumerate(data.class_names)}
    classes = result["confusion"]["classes"]
    rows = torch.isin(data.y_test, torch.tensor(classes))
    answers = [places[name] for name in model.predict(data.x_test[rows])]
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    true = data.y_test[rows].numpy()
    np.add.at(counts, (np.searchsorted(classes, true), np.searchsorted(classes, answers)), 1)
    return counts


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_it_answers_as_the_run_did(name: str, tmp_path: Path):
    schema = STRATEGIES.get(name)
    settings = [f"strategy={name}", *SMALL]
    if schema().trains_backbone:
        frozen = hasattr(schema(), "first_experience_epochs")
        epochs = "first_experience_epochs" if frozen else "train_epochs"
        settings += [*TRAINED, f"strategy.{epochs}=1"]
    if name == "aper":
        settings += ["strategy.session.adapt=finetune", "strategy.session.two_branches=true"]
    if name == "ranpac":
        settings.append("strategy.head.projection=50")
    result, folder = run(tmp_path, *settings)
    if name == "avalanche_fecam":  # its matrices have no form among our answers
        assert not (folder / "model").exists()
        return
    model = load_model(folder / "model")
    np.testing.assert_array_equal(confusion(folder, model, result), result["confusion"]["counts"])
    assert not list(folder.rglob("*.ckpt"))
    learns = isinstance(model, PrototypeClassifier)
    assert learns or isinstance(model, TrainedClassifier)
    assert len(list(folder.rglob("memory.safetensors"))) <= 1
