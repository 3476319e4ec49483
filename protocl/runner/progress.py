"""Where a run is, as whoever watches it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        phase: ``"data"``, ``"features"``, ``"train"``, ``"eval"`` or ``"report"``.
        done: units that are finished; None before the first begins.
        total: units of the whole run; None before they are counted.
        unit: ``"experience"``, ``"round"``, ``"step"`` or ``"epoch"``.
        epoch: index of the epoch within an experience, from 0, while training.
        n_epochs: epochs of this experience.
        accuracy: share of right answers on the classes seen so far, at the last evaluation; None
            before the first.
        report: what the unit that has just ended brought, or None; its text fits on a line.
    """

    phase: str
    done: int | None = None
    total: int | None = None
    unit: str = "experience"
    epoch: int | None = None
    n_epochs: int | None = None
    accuracy: float | None = None
    report: Any = None

    @property
    def share(self) -> float:
        """Share of the run that is done, in [0, 1], by units and epochs."""
        if self.done is None or not self.total:
            return 0.0
        within = 0.0
        if self.phase == "eval":
            within = 0.9
        elif self.epoch is not None and self.n_epochs:
            within = 0.9 * self.epoch / self.n_epochs
        return min(1.0, (self.done + within) / self.total)

    def __str__(self) -> str:
        if self.done is None or self.total is None or self.done >= self.total:
            return self.phase
        status = f"{self.unit} {self.done + 1}/{self.total} {self.phase}"
        if self.epoch is not None:
            status += f" epoch {self.epoch + 1}/{self.n_epochs}"
        return status if self.accuracy is None else f"{status}, so far {self.accuracy:.1%}"

    @property
    def line(self) -> str | None:
        """The report as a line that begins with what it is of, such as ``epoch 3/10: ``."""
        if self.report is None or self.phase == "report":
            return None if self.report is None else str(self.report)
        return f"{self.unit} {self.done}/{self.total}: {self.report}"


ProgressCallback = Callable[[Progress], None]
