"""Sweeps by Ray and by submitit: a worker that dies is replaced, and its run goes on."""

from __future__ import annotations

import json
import logging
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from protocl.cli.main import main
from protocl.config.schema import RunConfig
from protocl.errors import ConfigError
from protocl.runner.folders import open_run
from protocl.runner.launchers.base import LostError, Order, RemoteWorker, carry_out
from protocl.runner.progress import Progress
from protocl.runner.sweep import Outcome, run_sweep
from tests.runner.launchers.kinds import HEALTHY, HOPELESS, Mortal

ROOT = Path(__file__).parents[3]


class Notes:
    """What a sweep said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, index: int, folder: Path) -> None:
        pass

    def progressed(self, index: int, progress: Progress) -> None:
        self.lines.append(f"{index} {progress.report}")

    def ended(self, index: int, outcome: Outcome) -> None:
        pass


def sweep(tmp_path: Path, *settings: str) -> tuple[list[Outcome], list[str]]:
    """Runs of which one lives, one dies once, and one always."""
    words = [f"output={tmp_path / 'mit Leer é'}", "name=mortal", "device=cpu", *settings]
    configs = Mortal().load([*words, f"seed={HEALTHY},4,{HOPELESS}"])
    notes = Notes()
    outcomes = run_sweep(Mortal(), configs, notes, jobs=3)
    return outcomes, notes.lines


def was(outcome: Outcome) -> str:
    return str(json.loads((outcome.folder / "result.json").read_text())["was"])


def require_survived(outcomes: list[Outcome], lines: list[str]) -> None:
    assert [was(outcome) for outcome in outcomes[:2]] == ["whole", "resumed"]
    assert [outcome.exit_code for outcome in outcomes] == [0, 0, 1]
    assert outcomes[2].failure is not None
    assert "died 3 times" in outcomes[2].failure
    assert "resume=true continues it" in outcomes[2].failure
    assert outcomes[2].folder.is_dir()
    assert sorted(line[0] for line in lines) == ["1", "2", "2"]
    assert all("goes on in another" in line for line in lines)


@pytest.mark.slow  # fourteen processes, of which each imports torch
def test_jobs_that_are_killed_are_submitted_again_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec("submitit") is None:
        pytest.skip("the extra 'slurm' is not installed")
    monkeypatch.chdir(ROOT)  # where the jobs find this module
    require_survived(*sweep(tmp_path, "launcher=slurm", "slurm.cluster=local"))


@pytest.mark.slow
def test_tasks_whose_worker_is_killed_are_begun_again_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    monkeypatch.chdir(ROOT)
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        require_survived(*sweep(tmp_path, "launcher=ray"))
    finally:
        ray.shutdown()


class Fragile(RemoteWorker):
    """Loses so many orders before it answers."""

    def __init__(self, losses: int, said: list[str]) -> None:
        super().__init__(Mortal(), lambda index, what: said.append(f"{index} {what}"))
        self.left = losses

    def order(self, order: Order, config: RunConfig) -> tuple[str | None, int]:
        self.left -= 1
        if self.left >= 0:
            raise LostError("signal 9")
        return carry_out(order)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("losses", [0, 1, 2, 3])
def test_a_run_that_is_lost_goes_on_until_it_is_given_up(tmp_path: Path, losses: int) -> None:
    (config,) = Mortal().load([f"output={tmp_path}", "name=mortal", f"seed={HEALTHY}"])
    said: list[str] = []
    outcome = Fragile(losses, said).run(5, config, open_run(config))
    assert len(said) == min(losses, 2)
    assert all(line.startswith("5 lost its process (signal 9)") for line in said)
    if losses < 3:
        assert (was(outcome), outcome.exit_code) == ("whole", 0)
    else:
        assert "died 3 times (signal 9)" in str(outcome.failure)


@pytest.mark.parametrize(("launcher", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_launcher_that_is_not_installed_is_said(
    launcher: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"pip install 'protocl\[{launcher}\]'"):
        sweep(tmp_path, f"launcher={launcher}")
    assert list(tmp_path.rglob("*.json")) == []


def test_no_slurm_here_is_said_and_what_is_no_launcher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec("submitit") is None:
        pytest.skip("the extra 'slurm' is not installed")
    handlers = logging.getLogger().handlers[:]
    with pytest.raises(ConfigError, match=r"slurm\.cluster=local"):
        sweep(tmp_path, "launcher=slurm", "slurm.cluster=slurm")
    assert main(["run", "strategy=slda", "launcher=condor"]) == 2
    assert "launcher" in capsys.readouterr().err
    assert logging.getLogger().handlers == handlers
    assert not logging.getLogger("submitit").handlers
