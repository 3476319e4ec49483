"""Runs from Python: the command's own runner, and what becomes of failures and interruptions."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import protocl
from protocl.cli.main import main
from protocl.errors import ConfigError
from protocl.python.runs import KINDS
from protocl.report import result
from protocl.runner.experiment import ExperimentKind

FEW = {"train_per_class": 20, "n_experiences": 2}


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files(folder: Path) -> set[str]:
    return {path.name.partition(".")[0] for path in folder.rglob("*") if path.is_file()}


def test_the_same_run_as_the_command(tmp_path: Path) -> None:
    (run,) = protocl.run("benchmark=digits", strategy="slda", seed=1, benchmark=FEW)
    words = ["benchmark=digits", "benchmark.train_per_class=20", "benchmark.n_experiences=2"]
    assert main(["run", *words, "strategy=slda", "seed=1", "resume=true"]) == 0  # finds it
    assert main(["run", *words, "strategy=slda", "seed=1", "output=again"]) == 0
    (other,) = (tmp_path / "again").rglob("result.json")
    assert run.path.parent == Path("runs/digits-slda")
    assert len(list(run.path.parent.iterdir())) == 1
    assert files(run.path) == files(other.parent)
    one, two = (json.loads((p / "result.json").read_text()) for p in (run.path, other.parent))
    for part in ("benchmark", "strategy", "metrics", "confusion", "backbone"):
        assert one[part] == two[part]
    settings = [yaml.safe_load((p / "config.yaml").read_text()) for p in (run.path, other.parent)]
    assert {**settings[0], "output": ""} == {**settings[1], "output": ""}


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_others_finish_where_a_run_fails(jobs: int) -> None:
    with pytest.raises(protocl.RunsFailedError, match="1 of 2 runs failed") as failed:
        protocl.run(strategy="slda", benchmark=FEW, device=["nonsense", "cpu"], jobs=jobs)
    assert "device=nonsense: not available here" in str(failed.value)
    results = failed.value.results
    assert [run.config["device"] for run in results] == ["cpu"]
    (failure,) = results.failures
    assert failure.label == "device=nonsense"
    assert not failure.folder.exists()
    assert len(list(Path("runs/digits-slda").iterdir())) == 1


def test_a_run_that_is_alone_fails_with_its_own_error() -> None:
    with pytest.raises(ConfigError, match="device=nonsense"):
        protocl.run(strategy="slda", device="nonsense")
    assert not list(Path("runs/digits-slda").iterdir())


def test_a_mistake_is_found_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="unknown strategy 'sldaa': did you mean 'slda'"):
        protocl.run(strategy=["slda", "sldaa"])
    assert not Path("runs").exists()


def test_goes_on_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    execute = ExperimentKind.execute

    def interrupted(self: Any, run: Any) -> Any:
        if run.config.seed == 2:
            raise KeyboardInterrupt
        return execute(self, run)

    wanted = {"strategy": "nearest_mean", "seed": [1, 2], "benchmark": FEW}
    with monkeypatch.context() as patched:
        patched.setattr(ExperimentKind, "execute", interrupted)
        with pytest.raises(KeyboardInterrupt) as stopped:
            protocl.run(wanted)
    assert stopped.value.__notes__ == ["interrupted; the same call with resume=True goes on"]
    (finished,) = Path("runs").rglob("result.json")
    written = finished.stat().st_mtime_ns
    results = protocl.run(wanted, resume=True, output=Path("runs").resolve())
    assert [run.seed for run in results] == [1, 2]
    assert finished.stat().st_mtime_ns == written


def test_the_callers_random_numbers_stay_as_they_are() -> None:
    def drawn() -> list[Any]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    def seeded() -> None:
        random.seed(5), np.random.seed(5), torch.manual_seed(5)

    seeded()
    expected = drawn()
    seeded()
    protocl.run(strategy="naive", benchmark=FEW, output="ünï code")
    assert drawn() == expected
    assert len(list(Path("ünï code").rglob("result.json"))) == 1


def test_a_notebook_shows_lines_and_no_bars(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as its kernel does
    protocl.run(strategy="nearest_mean", benchmark=FEW)
    shown = capsys.readouterr()
    assert shown.err.startswith("done    digits-nearest_mean seed=0: runs/digits-nearest_mean/")
    assert "\x1b" not in shown.err
    assert shown.out == ""


def test_every_kind_of_run_is_registered() -> None:
    assert KINDS.names() == sorted(result.KINDS)
    assert {name: KINDS.get(name).name for name in KINDS.names()} == {n: n for n in result.KINDS}


def test_dir_lists_what_there_is_and_all_of_it_is_found() -> None:
    assert {"run", "federate", "load_run", "PrototypeMemory", "heads"} <= set(dir(protocl))
    for name in dir(protocl):
        assert getattr(protocl, name) is not None
    assert set(protocl.__all__) <= set(dir(protocl))
    script = (
        "import sys, protocl; dir(protocl); protocl.load_run; protocl.run; outer = "
        "('protocl.strategies', 'protocl.federation'); "
        "print(any(name.startswith(outer) for name in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
