"""Strategies that train, from their configuration, as the command line builds them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from protocl.config.compose import load
from protocl.errors import ConfigError
from protocl.runner.experiment import run_experiment
from protocl.strategies.prd import PRDConfig
from protocl.strategies.protocl import ProtoCLConfig

SMALL = [
    "benchmark=digits",
    "benchmark.n_experiences=2",
    "backbone=mlp",
    "backbone.width=64",
    "strategy.train_epochs=3",
    "strategy.lr=1e-2",
]


@pytest.mark.parametrize(
    "settings",
    [
        ["strategy=prd", "strategy.plugin.prototype_lr=1.0", "strategy.views=copies"],
        ["strategy=palm", "strategy.head=lda", "strategy.loss.nearest=0"],
        ["strategy=palm_released", "strategy.warmup_epochs=1", "strategy.views=copies"],
        ["strategy=prd_released", "strategy.first_experience_epochs=4", "strategy.views=copies"],
        ["strategy=protocl", "strategy.plugin.mem_size=50", "strategy.all_classes=true"],
        ["strategy=protocl", "strategy.plugin.refit=memory", "strategy.plugin.covariance=diag"],
        ["strategy=protocl", "strategy.plugin.covariance=full"],
        ["strategy=protocl_tuned", "strategy.plugin.mem_size=50", "strategy.milestones=[1]"],
    ],
)
def test_a_run_from_the_command_lines_settings(settings: list[str], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    (config,) = load([*SMALL, *settings, f"output={tmp_path}", "device=cpu"])
    result = run_experiment(config, tmp_path)
    torch.set_num_threads(threads)
    assert result["status"] == "complete"
    chance = 1 / 5
    assert result["metrics"]["accuracy_matrix"][0][0] > 2 * chance


TRAINED = (
    "prd", "protocl", "protocl_tuned", "napa_vq", "pass", "il2a", "icarl_nme",
    "palm", "protogcd", "gpc",
)  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "skipped"),
    [
        (strategy, skipped)
        for strategy in (
            "prd",
            "protocl",
            "protocl_tuned",
            "napa_vq",
            "pass",
            "il2a",
            "icarl_nme",
            "palm",
        )
        for skipped in ("first_experience_epochs", "train_epochs")
    ]
    + [("fetril", "first_experience_epochs")],
)
def test_experiences_without_training(strategy: str, skipped: str, tmp_path: Path) -> None:
    """The backbone as it is given; what follows must know the classes all the same."""
    settings = [f"strategy={strategy}", f"strategy.{skipped}=0", "benchmark.train_per_class=20"]
    # FeTrIL trains in no other experience and has no use for the settings of an optimizer then.
    small = SMALL[:-2] if strategy == "fetril" else SMALL
    (config,) = load([*small, *settings, f"output={tmp_path}", "device=cpu"])
    assert run_experiment(config, tmp_path)["status"] == "complete"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["strategy=prd", "strategy.projector.hidden=-1"],
            "widths -1 and 128: expected at least 1",
        ),
        (["strategy=ewc", "strategy.decay_factor=0.9"], "mode='separate' with decay_factor=0.9"),
        (["strategy=ewc", "strategy.mode=online"], "mode='online' with decay_factor=None"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    settings: list[str], message: str, tmp_path: Path
) -> None:
    (config,) = load([*SMALL, *settings, f"output={tmp_path}", "device=cpu"])
    with pytest.raises(ConfigError, match=message):
        run_experiment(config, tmp_path)


def test_a_choice_that_is_none_is_refused_before_the_run() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.mode=both: expected separate or online"):
        load(["strategy=ewc", "strategy.mode=both"])


def test_what_is_kept_is_stated() -> None:
    assert not PRDConfig.info.keeps_data
    assert ProtoCLConfig.info.keeps_data
    assert "mem_size" in ProtoCLConfig.info.stored_between_experiences
