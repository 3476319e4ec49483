"""What a run is compared by: one column of the summary table a metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from protocl import metrics
from protocl.metrics import MeanAndSpread
from protocl.metrics.frequency import FEW, MANY
from protocl.report.runs import Run

NO_VALUE = "-"


@dataclass(frozen=True)
class Column:
    """A metric in the summary table.

    Attributes:
        key: name in CSV files.
        title: heading, with the unit.
        meaning: one sentence for readers who do not know the metric.
        better: ``+1`` when more is better, ``-1`` when less is, 0 when neither is marked.
        measure: the metric of one run, in base units; None where it was not measured.
        scale: factor from base units to those of the heading.
        digits: digits after the decimal point.
        short: heading in the terminal, which has little room; empty leaves the column out there.
        over_time: says nothing about a single experience, and is left out for one.
    """

    key: str
    title: str
    meaning: str
    better: int
    measure: Callable[[Run], float | None]
    scale: float = 100.0
    digits: int = 2
    short: str = ""
    over_time: bool = False

    def text(self, value: MeanAndSpread | None) -> str:
        """``mean ± std`` in the column's unit; no spread for a single seed, or for a cost."""
        if value is None:
            return NO_VALUE
        mean = f"{self._rounded(value.mean):,.{self.digits}f}"
        if value.std is None or not self.better:
            return mean
        return f"{mean} ± {self._rounded(value.std):,.{self.digits}f}"

    def best(self, values: Sequence[MeanAndSpread | None]) -> set[int]:
        """Positions of the best values as printed; none when fewer than two can be compared."""
        known = {i: self._rounded(value.mean) for i, value in enumerate(values) if value}
        if not self.better or len(known) < 2:
            return set()
        top = max(self.better * value for value in known.values())
        return {i for i, value in known.items() if self.better * value == top}

    def _rounded(self, value: float) -> float:
        return round(value * self.scale, self.digits) + 0.0  # + 0.0 makes -0.0 a plain zero


def _state_bytes(run: Run) -> float | None:
    size = run.strategy.state_bytes
    return None if size is None else float(size)


def _frequency_column(name: str, samples: str) -> Column:
    return Column(
        f"{name}_accuracy",
        f"{name.capitalize()} (%)",
        f"mean accuracy of the classes of {samples} training samples; of imbalanced streams",
        +1,
        lambda run: run.metrics.accuracy_by_frequency.get(name),
        short=f"{name.capitalize()} %",
    )


COLUMNS = (
    Column(
        "average_incremental_accuracy",
        "Avg. incremental accuracy (%)",
        "mean of the accuracies on all classes seen, after each experience",
        +1,
        lambda run: metrics.average_incremental_accuracy(run.stream_accuracy),
        short="Avg. inc. %",
        over_time=True,
    ),
    Column(
        "last_accuracy",
        "Last accuracy (%)",
        "accuracy on all classes after the last experience",
        +1,
        lambda run: metrics.last_accuracy(run.stream_accuracy),
        short="Last %",
    ),
    Column(
        "forgetting",
        "Forgetting (points)",
        "fall of the accuracy on an experience between learning it and the end; mean",
        -1,
        lambda run: metrics.forgetting(run.accuracy_matrix),
        short="Forgetting",
        over_time=True,
    ),
    Column(
        "maximum_forgetting",
        "Max. forgetting (points)",
        "as forgetting, from the best accuracy ever reached on the experience",
        -1,
        lambda run: metrics.maximum_forgetting(run.accuracy_matrix),
        over_time=True,
    ),
    Column(
        "backward_transfer",
        "Backward transfer (points)",
        "what later experiences added to the accuracy of earlier ones; minus forgetting",
        +1,
        lambda run: metrics.backward_transfer(run.accuracy_matrix),
        over_time=True,
    ),
    Column(
        "expected_calibration_error",
        "Calibration error (%)",
        "expected distance between confidence (softmax of the logits) and accuracy; 15 bins",
        -1,
        lambda run: run.metrics.expected_calibration_error,
    ),
    Column(
        "state_bytes",
        "Prototype memory (KiB)",
        "size of the statistics kept; a dash for strategies without a prototype memory",
        0,
        _state_bytes,
        scale=1 / 1024,
        digits=1,
        short="KiB",
    ),
    Column(
        "megabytes_up",
        "Up (MB)",
        "bytes of all messages from clients, serialised; a dash outside federations",
        0,
        lambda run: run.exchanged("up"),
        scale=1e-6,
        short="MB up",
    ),
    Column(
        "megabytes_down",
        "Down (MB)",
        "bytes of all messages to clients, serialised; a dash outside federations",
        0,
        lambda run: run.exchanged("down"),
        scale=1e-6,
        short="MB down",
    ),
    Column(
        "seconds",
        "Time (s)",
        "wall time of the whole run",
        0,
        lambda run: run.seconds,
        scale=1.0,
        digits=1,
        short="s",
    ),
    Column(
        "peak_mib",
        "Peak memory (MiB)",
        "highest memory use of the run",
        0,
        lambda run: run.peak_mib,
        scale=1.0,
        digits=0,
    ),
)


IMBALANCED = (
    _frequency_column("many", f"more than {MANY}"),
    _frequency_column("medium", f"{FEW} to {MANY}"),
    _frequency_column("few", f"fewer than {FEW}"),
)
"""Columns that only streams with a long tail have, behind the accuracy."""


def columns_of(runs: Iterable[Run]) -> list[Column]:
    """All columns; those of :data:`IMBALANCED` only where a run has them."""
    runs = list(runs)
    had = [c for c in IMBALANCED if any(c.measure(run) is not None for run in runs)]
    behind = 1 + [column.key for column in COLUMNS].index("last_accuracy")
    return [*COLUMNS[:behind], *had, *COLUMNS[behind:]]
