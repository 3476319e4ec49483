"""Trackers: each receives a run's numbers; one that fails costs none of them."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from protocl.config.compose import load
from protocl.errors import ConfigError
from protocl.python.values import arguments_of
from protocl.registry import TRACKERS
from protocl.runner.experiment import EXPERIMENT, run_experiment
from protocl.runner.progress import Progress
from protocl.trackers import Place, Tracker, open_trackers
from protocl.trackers.csv import Csv

DIGITS = ["benchmark=digits", "benchmark.classes=4", "benchmark.n_experiences=2",
          "benchmark.train_per_class=20", "benchmark.test_per_class=10"]  # fmt: skip


def run(folder: Path, strategy: str, tracker: str) -> dict[str, Any]:
    settings = [*DIGITS, f"strategy={strategy}", f"tracker={tracker}", f"output={folder.parent}"]
    (config,) = load(settings)
    folder.mkdir()
    result: dict[str, Any] = run_experiment(config, folder)
    return result


def rows(folder: Path) -> list[list[str]]:
    with (folder / "scalars.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def place(folder: Path) -> Place:
    return Place(folder, "name", {"seed": 1}, folder.parent)


@pytest.mark.parametrize("strategy", ["slda", "naive"])
def test_csv_has_the_numbers_of_the_result(strategy: str, tmp_path: Path) -> None:
    result = run(tmp_path / "run", strategy, "csv")
    header, *found = rows(tmp_path / "run")
    assert header == ["name", "step", "value"]
    curve = [float(value) for name, _, value in found if name == "stream_accuracy"]
    assert curve == pytest.approx(result["metrics"]["stream_accuracy"])
    assert not list((tmp_path / "run").glob("events*"))


def test_mlflow_has_the_numbers_and_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)
    result = run(tmp_path / "ünï run", "slda", "[mlflow,tensorboard]")
    assert len(list((tmp_path / "ünï run").glob("events*"))) == 1
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient((tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("digits-slda")
    (noted,) = client.search_runs([experiment.experiment_id])
    curve = [point.value for point in client.get_metric_history(noted.info.run_id,
                                                                "stream_accuracy")]  # fmt: skip
    assert curve == pytest.approx(result["metrics"]["stream_accuracy"])
    assert noted.data.params["benchmark.classes"] == "4"
    assert noted.info.status == "FINISHED"
    # Another process that goes on takes up the same run.
    again = TRACKERS.get("mlflow")(Place(tmp_path / "ünï run", "digits-slda", {}, tmp_path))
    again.log("stream_accuracy", 0.5, 9)
    again.close(failed=True)
    (noted,) = client.search_runs([experiment.experiment_id])
    assert noted.data.metrics["stream_accuracy"] == 0.5
    assert noted.info.status == "FAILED"


def test_wandb_is_told_names_steps_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the package, whose own process takes seconds to start."""
    told: list[Any] = []
    begun: dict[str, Any] = {}
    session = SimpleNamespace(
        define_metric=lambda name, step_metric: told.append((name, step_metric)),
        log=told.append,
        finish=lambda exit_code: told.append(exit_code),
    )

    def init(**settings: Any) -> Any:
        begun.update(settings)
        return session

    fake = SimpleNamespace(init=init, Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delitem(sys.modules, "protocl.trackers.wandb", raising=False)
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    from protocl.trackers.wandb import WandB

    tracker = WandB(place(tmp_path))
    tracker.log("a/b", 0.5, 3)
    tracker.log("a/b", 0.7, 3)
    tracker.close(failed=False)
    monkeypatch.delitem(sys.modules, "protocl.trackers.wandb")
    assert begun["mode"] == "offline"
    assert begun["config"] == {"seed": 1}
    assert told == [("a/b", "a/b/step"), {"a/b": 0.5, "a/b/step": 3},
                    {"a/b": 0.7, "a/b/step": 3}, 0]  # fmt: skip


class Failing(Tracker):
    """Raises at the ``after``-th number, or when it is made."""

    after = 3

    def __init__(self, place: Place) -> None:
        if self.after < 0:
            raise OSError("no such server")
        self.told: list[float] = []

    def log(self, name: str, value: float, step: int) -> None:
        if len(self.told) >= self.after:
            raise ConnectionError("the server went away")
        self.told.append(value)

    def close(self, *, failed: bool) -> None:
        pytest.fail("it is no longer asked")


@pytest.mark.parametrize("after", [-1, 0, 3])
def test_a_tracker_that_fails_is_left_out_aloud(
    after: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (config,) = load([*DIGITS, "tracker=[wandb,csv]", "strategy=slda"])
    monkeypatch.setattr(Failing, "after", after)
    monkeypatch.setattr(
        type(TRACKERS), "get", lambda self, name: Failing if name == "wandb" else Csv
    )
    trackers = open_trackers(config, tmp_path, 0)
    for step in range(5):
        trackers.add_scalar("a", step / 2, step)
    trackers.close()
    assert [row[2] for row in rows(tmp_path)] == ["value", "0.0", "0.5", "1.0", "1.5", "2.0"]
    (said,) = [r.message for r in caplog.records if "tracker 'wandb' failed" in r.message]
    assert "result.json" in said


def test_a_run_goes_on_without_a_tracker_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from protocl.trackers import csv as module

    def refuse(self: object, name: str, value: float, step: int) -> None:
        raise OSError(28, "No space left on device")

    whole = run(tmp_path / "whole", "slda", "[]")
    monkeypatch.setattr(module.Csv, "log", refuse)
    assert run(tmp_path / "run", "slda", "csv")["metrics"] == whole["metrics"]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "complete"


@pytest.mark.parametrize("strategy", ["slda", "naive"])
def test_a_run_that_was_killed_leaves_each_point_once(strategy: str, tmp_path: Path) -> None:
    settings = [*DIGITS, f"strategy={strategy}", "tracker=csv", "strategy.train_epochs=1"]
    (config,) = load(settings[:-1] if strategy == "slda" else settings)

    def interrupt(progress: Progress) -> None:
        if progress.phase == "eval" and progress.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, tmp_path, interrupt)
    result = run_experiment(config, tmp_path)
    curve = [row[1:] for row in rows(tmp_path) if row[0] == "stream_accuracy"]
    assert [int(step) for step, _ in curve] == [0, 1]
    assert [float(v) for _, v in curve] == pytest.approx(result["metrics"]["stream_accuracy"])


def test_rows_of_lost_steps_are_gone_when_a_run_goes_on(tmp_path: Path) -> None:
    first = Csv(place(tmp_path))
    for step, value in enumerate((0.5, math.nan, math.inf)):
        first.log('a "b", c', value, step)
    first.flush()
    with (tmp_path / "scalars.csv").open("a") as file:
        file.write("half,1")  # of a killed process
    second = Csv(place(tmp_path))
    second.go_on(2)
    second.log("d", 1.0, 2)
    second.close(failed=False)
    assert rows(tmp_path)[1:] == [['a "b", c', "0", "0.5"], ['a "b", c', "1", "nan"],
                                  ["d", "2", "1.0"]]  # fmt: skip
    third = Csv(place(tmp_path))
    third.go_on(0)
    third.close(failed=False)
    assert rows(tmp_path) == [["name", "step", "value"]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tensorbord", "unknown tracker 'tensorbord': did you mean 'tensorboard'"),
        ("[csv,3]", "unknown tracker '3'"),
        ("null", "tracker=None"),
        ("mlflow,csv", "'tracker' takes one value; it cannot be swept"),
    ],
)
def test_what_is_no_tracker_is_refused(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load([*DIGITS, "strategy=slda", f"tracker={given}"])


def test_a_package_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.delitem(sys.modules, "protocl.trackers.mlflow", raising=False)
    (config,) = load([*DIGITS, "strategy=slda", "tracker=mlflow"])
    with pytest.raises(ConfigError, match=r"mlflow is not installed: pip install 'protocl\[mlflow"):
        open_trackers(config, tmp_path)


def test_from_python_a_list_of_trackers_is_one_value() -> None:
    arguments = arguments_of(EXPERIMENT, [], {"strategy": "slda", "tracker": ["csv", "mlflow"]})
    (config,) = EXPERIMENT.load(arguments)
    assert config.tracker == ["csv", "mlflow"]


def test_each_is_told_once_though_it_is_named_twice(tmp_path: Path) -> None:
    (config,) = load([*DIGITS, "strategy=slda", "tracker=[csv,csv]"])
    trackers: Sequence[str] = list(open_trackers(config, tmp_path).trackers)
    assert trackers == ["csv"]
