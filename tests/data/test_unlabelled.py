"""Samples without labels: whose they are, with what they come, and how well they are sorted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from protocl.config.compose import load
from protocl.data import BenchmarkConfig, class_stream, load_data
from protocl.errors import ConfigError
from protocl.runner.experiment import run_experiment
from protocl.runner.result import discovery_of

DIGITS = load_data(BenchmarkConfig())


def stream(**settings: Any) -> Any:
    return class_stream(BenchmarkConfig(**settings), DIGITS, seed=1)


def test_every_training_sample_is_labelled_or_not() -> None:
    made = stream(n_experiences=3, unlabelled=0.4, new_classes=4)
    assert [len(classes) for classes in made.classes] == [2, 2, 2]
    labelled = torch.bincount(made.data.y_train, minlength=10)
    hidden = torch.bincount(made.hidden, minlength=10)
    assert torch.equal(labelled + hidden, torch.bincount(DIGITS.y_train, minlength=10))
    named = [c for classes in made.classes for c in classes]
    shares = hidden[named] / (hidden + labelled)[named]
    assert float((shares - 0.4).abs().max()) < 0.01
    new = sorted(set(range(10)) - set(named))
    assert not labelled[new].any()
    assert made.unlabelled.new_categories == (2, 1, 1)
    assert sorted(made.data.y_test.unique().tolist()) == sorted(named)
    for t, classes in enumerate(made.classes):
        come = set(made.hidden[made.unlabelled.rows(t)].tolist())
        assert come & set(named) == set(classes)
        assert len(come - set(named)) == made.unlabelled.new_categories[t]


def test_the_samples_are_those_of_their_hidden_classes() -> None:
    made = stream(n_experiences=1, unlabelled=0.5, new_classes=3)
    pairs = zip(DIGITS.x_train, DIGITS.y_train, strict=True)
    everything = {row.numpy().tobytes(): int(y) for row, y in pairs}
    for row, y in zip(made.unlabelled.x[:50], made.hidden[:50], strict=True):
        assert everything[row.numpy().tobytes()] == int(y)


def test_without_the_settings_the_stream_is_what_it_was() -> None:
    made = stream(n_experiences=5)
    assert made.unlabelled is None
    assert made.data is DIGITS


def test_labels_may_be_hidden_of_named_classes_alone() -> None:
    made = stream(n_experiences=2, unlabelled=0.3)
    assert made.unlabelled.new_categories == (0, 0)
    assert sorted(c for classes in made.classes for c in classes) == list(range(10))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unlabelled": 1.0}, r"benchmark\.unlabelled=1\.0: expected a share"),
        ({"unlabelled": -0.1}, r"benchmark\.unlabelled=-0\.1"),
        (
            {"new_classes": 10},
            r"benchmark\.new_classes=10: .* fewer than the 10",
        ),
        ({"new_classes": -1}, r"benchmark\.new_classes=-1"),
        ({"new_classes": 3, "n_experiences": 5}, r"n_experiences=5 does not divide 7 classes"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stream(**{"n_experiences": 1, **settings})


SMALL = [
    "benchmark=digits", "benchmark.n_experiences=2", "benchmark.unlabelled=0.5",
    "benchmark.new_classes=4", "benchmark.train_per_class=20", "device=cpu", "seed=1",
]  # fmt: skip


def run(folder: Path, *settings: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (config,) = load([*SMALL, *settings, f"output={folder}"])
    return run_experiment(config, folder)


def test_a_run_tells_how_well_it_sorts_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    settings = [
        "strategy=protogcd", "strategy.train_epochs=2", "strategy.plugin.hidden=16",
        "backbone=mlp", "backbone.width=32",
    ]  # fmt: skip
    whole = run(tmp_path / "whole", *settings)
    (config,) = load([*SMALL, *settings, f"output={tmp_path}"])
    folder = tmp_path / "stopped"
    folder.mkdir()

    def stop(progress: Any) -> None:
        if progress.phase == "train" and progress.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, folder, stop)
    resumed = run_experiment(config, folder)
    assert resumed["discovery"] == whole["discovery"]
    assert resumed["metrics"] == whole["metrics"]
    last = whole["discovery"][-1]
    assert last["experience"] == 1
    assert last["samples"] == whole["benchmark"]["n_unlabelled"] == 6 * 10 + 4 * 20
    assert 0 < last["all"] <= 1
    assert (tmp_path / "whole" / "model" / "memory.safetensors").is_file()


def test_who_sorts_nothing_is_not_measured() -> None:
    assert discovery_of(object(), stream(n_experiences=1, new_classes=2), 0) is None
    assert discovery_of(object(), stream(n_experiences=1), 0) is None


@pytest.mark.parametrize(
    "command", [["federate", "federation=digits"], ["reconnaissance", "reconnaissance=digits"]]
)
def test_other_kinds_of_runs_refuse_them(command: list[str], tmp_path: Path, capsys: Any) -> None:
    from protocl.cli.main import main

    code = main([*command, "benchmark.new_classes=2", f"output={tmp_path}"])
    assert code
    assert "benchmark.new_classes=2: samples without labels are for protocl run" in (
        capsys.readouterr().err
    )
