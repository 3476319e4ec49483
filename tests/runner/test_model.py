"""The model that each run leaves behind answers as the run did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

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


def test_pictures_are_seen_as_the_run_saw_them(tmp_path: Path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 5)):
        for shade, name in enumerate(("a b", "ö", "c")):
            folder = tmp_path / "pictures" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (20 + i, 31 - i, 3)) + 40 * shade
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    result, folder = run(
        tmp_path, "benchmark=image_folder", f"benchmark.path={tmp_path / 'pictures'}",
        "benchmark.image_size=18", "benchmark.n_experiences=3", "backbone=conv4",
        "backbone.width=4", "backbone.image_size=16", "strategy=slda",
    )  # fmt: skip
    files = sorted((tmp_path / "pictures" / "test").rglob("*.png"))
    answers = load_model(folder).predict(files)
    right = np.mean([file.parent.name == label for file, label in zip(files, answers, strict=True)])
    assert right == result["metrics"]["last_accuracy"] > 0.4


def test_a_run_can_keep_what_forgetting_by_name_takes(tmp_path: Path):
    shared = run(tmp_path, "strategy=slda", *SMALL)
    apart = run(tmp_path, "strategy=slda", "strategy.sums.forgettable=true", *SMALL)
    accuracies = [result["metrics"]["accuracy_matrix"] for result, _ in (shared, apart)]
    assert accuracies[0] == accuracies[1]
    model = load_model(apart[1])
    gone, *kept = model.classes_
    assert model.forget(classes=[gone]).classes_.tolist() == kept
    with pytest.raises(ValueError, match="give the samples"):
        load_model(shared[1]).forget(classes=[gone])
