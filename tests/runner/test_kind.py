"""What the one runner promises for every kind of run."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from protocl.cli.main import main
from protocl.errors import ConfigError, DataError
from protocl.federation.books.books import FILE
from protocl.federation.reconnaissance.run import RECONNAISSANCE
from protocl.federation.runner.run import FEDERATION
from protocl.io import provenance
from protocl.pretraining.run import PRETRAINING
from protocl.report.result import KINDS, Result
from protocl.runner.experiment import EXPERIMENT
from protocl.runner.folders import create_run, exclusive, open_run, read_result
from protocl.runner.kind import Kind
from protocl.runner.progress import Progress, ProgressCallback

GOLDEN = Path(__file__).parents[1] / "golden" / "results_v1"
FEW = "benchmark.train_per_class=20"
SMALL: dict[Kind[Any], list[str]] = {
    EXPERIMENT: [FEW, "strategy=slda", "benchmark.n_experiences=5"],
    FEDERATION: [FEW, "federation=digits", "rounds=4", "partition.growth=samples"],
    RECONNAISSANCE: [FEW, "reconnaissance=digits", "scenario.clients=1", "method=fedavg"],
    PRETRAINING: [FEW, "benchmark=digits", "backbone=conv4", "backbone.width=4", "epochs=3"],
}
each_kind = pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.name)


def configure(kind: Kind[Any], output: Path, *words: str) -> Any:
    places = [f"output={output}"]
    if kind is not PRETRAINING:
        places.append(f"cache={output / 'cache'}")
    (config,) = kind.load([*SMALL[kind], *places, "device=cpu", "resume=true", *words])
    return config


NOT_HELD = {"seconds", "bytes", "contributions"}


def numbers(result: dict[str, Any]) -> Any:
    """All that is no time and no circumstance.

    Clients in a process lose their state with it and send all of it again: some bytes more, and
    contributions that are replaced, as the books then say.
    """

    def without_times(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {k: v for k, v in value.items() if not NOT_HELD & {*k.split("_")}}
            return {k: without_times(v) for k, v in kept.items()}
        return [without_times(v) for v in value] if isinstance(value, list) else value

    circumstances = ("phases", "versions", "git", "machine")
    return without_times({k: v for k, v in result.items() if k not in circumstances})


class StoppedError(Exception):
    """Stands for the end of the process."""


def stop_after(done: int) -> ProgressCallback:
    """A callback that stops a run as it begins the unit after ``done`` others."""

    def stop(progress: Progress) -> None:
        if progress.phase == "train" and progress.done == done and progress.report is None:
            raise StoppedError

    return stop


def stop_reporting(done: int) -> ProgressCallback:
    """A callback that stops a federation, whose rounds begin by themselves."""

    def stop(progress: Progress) -> None:
        if progress.report is not None and progress.done == done:
            raise StoppedError

    return stop


def begun(kind: Kind[Any], output: Path) -> tuple[Any, Path]:
    """A run that was stopped after two units."""
    config = configure(kind, output)
    folder = open_run(config)
    stop = stop_reporting if kind is FEDERATION else stop_after
    with pytest.raises(StoppedError):
        kind.carry_out(config, folder, stop(2))
    return config, folder


@each_kind
def test_an_interrupted_run_goes_on_to_the_same_end(kind: Kind[Any], tmp_path: Path) -> None:
    config, folder = begun(kind, tmp_path / "a")
    assert open_run(config) == folder
    partial = read_result(folder)
    assert partial is None or partial["status"] == "running"
    seen: list[Progress] = []
    resumed = kind.carry_out(config, folder, seen.append)
    assert next(p.done for p in seen if p.phase == "train") == 2
    other = configure(kind, tmp_path / "b")
    whole = kind.carry_out(other, open_run(other))
    assert numbers(resumed) == numbers(whole)
    assert read_result(folder) == resumed


@each_kind
def test_a_finished_run_is_found_and_left_alone(kind: Kind[Any], tmp_path: Path) -> None:
    config = configure(kind, tmp_path)
    folder = open_run(config)
    result = kind.carry_out(config, folder)
    assert kind.carry_out(config, open_run(config), pytest.fail) == read_result(folder) == result
    assert Result.read(result).complete
    assert result["kind"] == kind.name in KINDS
    assert kind.keeps_checkpoints or not (folder / "checkpoint").exists()


@each_kind
def test_two_processes_do_not_write_one_run(kind: Kind[Any], tmp_path: Path) -> None:
    config = configure(kind, tmp_path)
    folder = create_run(config)
    with exclusive(folder), pytest.raises(ConfigError, match="in use by another process"):
        kind.carry_out(config, folder)


def changed_version(patch: pytest.MonkeyPatch, config: Any, folder: Path) -> None:
    newer = {**provenance.versions(), "torch": "9.9"}
    patch.setattr(provenance, "versions", lambda: newer)


def changed_data(patch: pytest.MonkeyPatch, config: Any, folder: Path) -> None:
    config.benchmark.test_per_class = 10


def earlier_protocl(patch: pytest.MonkeyPatch, config: Any, folder: Path) -> None:
    for file in (folder / "checkpoint").glob("*.ckpt"):
        shutil.copy(GOLDEN / "experiment-00001.ckpt", file)
    for file in (folder / "checkpoint").glob(FILE):  # the books of a federation
        with closing(sqlite3.connect(file)) as books:
            books.execute("PRAGMA user_version=99")


@each_kind
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (changed_version, ConfigError, "torch changed version since the run began"),
        (changed_data, DataError, "the data of benchmark 'digits' changed"),
        (earlier_protocl, ConfigError, "not of format 4, .* start anew without|of format 99"),
    ],
    ids=["version", "data", "format"],
)
def test_a_run_is_not_continued_as_another(
    kind: Kind[Any],
    change: Callable[[pytest.MonkeyPatch, Any, Path], None],
    error: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, folder = begun(kind, tmp_path)
    change(monkeypatch, config, folder)
    with pytest.raises(error, match=message):
        kind.carry_out(config, folder)


# Experiments are held by tests/cli/test_main.py, and one runner serves all.
@pytest.mark.parametrize(
    "kind",
    [FEDERATION, *(pytest.param(k, marks=pytest.mark.slow) for k in (RECONNAISSANCE, PRETRAINING))],
    ids=lambda kind: kind.name,
)
def test_processes_side_by_side_give_the_numbers_of_one_and_outlive_a_failure(
    kind: Kind[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL[kind], f"output={tmp_path}", "name=many", "device=cpu,cuda:77", "seed=1,2"]
    assert main([KINDS[kind.name], *words, "jobs=2"]) == 1
    shown = capsys.readouterr().err
    assert shown.count("failed  device=cuda:77 seed=") == 2
    assert shown.count("done    device=cpu seed=") == 2
    folders = sorted(file.parent for file in (tmp_path / "many").rglob("result.json"))
    assert len(folders) == 2
    assert len(list((tmp_path / "many").rglob("config.yaml"))) == 2
    for seed, folder in enumerate(folders, 1):
        config = configure(kind, tmp_path / "one", f"seed={seed}", "name=many")
        result = read_result(folder)
        assert result is not None
        assert numbers(kind.carry_out(config, open_run(config))) == numbers(result)


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        (EXPERIMENT, ["jobs=0"], "jobs=0: expected at least 1"),
        (FEDERATION, ["jobs=2", "engine=ray"], "jobs=2: engine=ray has every core at work"),
        (RECONNAISSANCE, ["jobs=1,2"], "'jobs' takes one value"),
        (PRETRAINING, ["cache=features"], "unknown key cache"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    kind: Kind[Any], words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        kind.load([*SMALL[kind], *words])
