"""Sweeps that are interrupted: what is said, and what is left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from protocl.pretraining.run import PRETRAINING
from protocl.runner.progress import Progress
from protocl.runner.sweep import Outcome, run_sweep

SMALL = ["benchmark=digits", "benchmark.train_per_class=20", "backbone.width=4", "device=cpu"]


class Impatient:
    """Presses Ctrl-C at the first sign of progress in ``phase``."""

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self.failures: list[str | None] = []
        self.pressed = False

    def started(self, index: int, folder: Path) -> None:
        pass

    def progressed(self, index: int, progress: Progress) -> None:
        if progress.phase == self.phase and not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)

    def ended(self, index: int, outcome: Outcome) -> None:
        self.failures.append(outcome.failure)


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_is_interrupted_before_its_first_result_leaves_nothing(
    tmp_path: Path, jobs: int
) -> None:
    output = tmp_path / "mit Leerzeichen é"
    configs = PRETRAINING.load([*SMALL, f"output={output}", "seed=1,2,3"])
    observer = Impatient("data")
    with pytest.raises(KeyboardInterrupt):
        run_sweep(PRETRAINING, configs, observer, jobs=jobs)
    assert observer.pressed
    assert observer.failures == []
    assert [path for path in output.rglob("*") if path.is_file()] == []


def test_what_has_a_checkpoint_is_kept(tmp_path: Path) -> None:
    words = [*SMALL, f"output={tmp_path}", "epochs=2", "seed=1,2"]

    class AfterOne(Impatient):
        def progressed(self, index: int, progress: Progress) -> None:
            if progress.done == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(PRETRAINING, PRETRAINING.load(words), AfterOne("train"))
    (kept,) = tmp_path.rglob("config.yaml")
    assert list(kept.parent.rglob("*.ckpt"))
