"""Recipes for one GPU: each composes, and runs on a CPU with one mini-batch an epoch."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from protocl.config.compose import load
from protocl.runner.experiment import run_experiment

RECIPES = {
    "cifar100_b50": (
        "napa_vq_released", "pass_released", "il2a_released", "prd_released", "fetril_100",
        "icarl_nme_100",
    ),
    "cifar100_categories": ("protogcd_released", "gpc_released"),
    "cifar100_mixture": ("palm_released",),
}  # fmt: skip
ALL = [(preset, name) for preset, names in RECIPES.items() for name in names]


def recipe(preset: str, strategy: str, *settings: str) -> Any:
    """A preset with one strategy and one seed."""
    (config,) = load([f"experiment={preset}", f"strategy={strategy}", "seed=1", *settings])
    return config


def swept(preset: str) -> list[str]:
    """The strategies that a preset compares, as its file has them."""
    text = files("protocl.configs").joinpath("experiment", f"{preset}.yaml").read_text()
    settings = yaml.safe_load(text)
    names: list[str] = settings["sweep"].get("strategy") or [settings["strategy"]]
    return names


@pytest.mark.parametrize("preset", RECIPES)
def test_a_recipe_is_of_full_size(preset: str) -> None:
    assert swept(preset) == list(RECIPES[preset])
    config = recipe(preset, RECIPES[preset][0])
    assert config.backbone.name == "resnet18"
    assert config.backbone.width == 64
    assert config.strategy.train_epochs >= 100


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in the shape of CIFAR-100: two training images a class, a test image."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("cifar") / "cifar100.npz"
    parts: dict[str, Any] = {}
    for part, copies in (("train", 2), ("test", 1)):
        parts[f"x_{part}"] = rng.integers(0, 256, (100 * copies, 32, 32, 3), dtype=np.uint8)
        parts[f"y_{part}"] = np.tile(np.arange(100), copies)
    np.savez(path, **parts)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "strategy"), ALL)
def test_a_recipe_runs_with_one_mini_batch_an_epoch(
    preset: str, strategy: str, images: Path, tmp_path: Path
) -> None:
    config = recipe(
        preset, strategy, f"benchmark.path={images}", "backbone.width=4", f"output={tmp_path}",
        "device=cpu", "tracker=[]",
    )  # fmt: skip
    config.strategy.train_epochs = 1
    config.strategy.train_mb_size = 200
    if config.strategy.first_experience_epochs is not None:
        config.strategy.first_experience_epochs = 1
    result = run_experiment(config, tmp_path)
    assert result["status"] == "complete"
    assert result["backbone"]["feature_dim"] == 32
    if preset == "cifar100_categories":
        assert result["discovery"][0]["samples"] == 80 + 40
    else:
        assert result["benchmark"]["n_experiences"] == (6 if preset == "cifar100_b50" else 1)
