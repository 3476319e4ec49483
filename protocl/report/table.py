"""The summary table: one row a group, one column a metric, in text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protocl import metrics
from protocl.metrics import MeanAndSpread
from protocl.report.groups import Benchmark, Group, differences
from protocl.report.paired import paired_differences
from protocl.report.runs import Run, Skipped

if TYPE_CHECKING:
    from rich.table import Table

NO_VALUE = "-"
PAIRED = "Last accuracy on the same seeds, difference in points [95 % confidence interval]"

_NAMES = frozenset({"benchmark.name", "strategy.name", "backbone.name", "method.name"})
_NAME_WIDTH = 20
"""Characters of a strategy's name that a narrow terminal does not break."""


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


@dataclass(frozen=True)
class Cell:
    """Text of one cell and whether it is the best of its column."""

    text: str
    best: bool


@dataclass(frozen=True)
class Row:
    """One group's line of the summary table; one cell for each of :func:`columns`."""

    group: Group
    cells: list[Cell]


def _state_bytes(run: Run) -> float | None:
    size = run.strategy.state_bytes
    return None if size is None else float(size)


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


def columns(benchmark: Benchmark) -> list[Column]:
    """The columns that say something about a benchmark, and hold a value for one group at least."""
    return [
        column
        for column in COLUMNS
        if not (benchmark.single and column.over_time)
        and any(group.spread(column.measure) is not None for group in benchmark.groups)
    ]


def rows(benchmark: Benchmark) -> list[Row]:
    """The summary table of one benchmark."""
    shown = columns(benchmark)
    spreads = [[group.spread(column.measure) for column in shown] for group in benchmark.groups]
    best = [
        column.best(values)
        for column, values in zip(shown, zip(*spreads, strict=True), strict=True)
    ]
    return [
        Row(
            group,
            [
                Cell(column.text(value), i in winners)
                for column, value, winners in zip(shown, values, best, strict=True)
            ],
        )
        for i, (group, values) in enumerate(zip(benchmark.groups, spreads, strict=True))
    ]


def markdown(benchmarks: Sequence[Benchmark], skipped: Sequence[Skipped]) -> str:
    """All tables in GitHub's Markdown; the best value of a column is bold."""
    blocks = []
    for benchmark in benchmarks:
        heading = ["Strategy", "Seeds", *(column.title for column in columns(benchmark))]
        lines = [_markdown_line(heading), _markdown_line(["---", *["---:"] * (len(heading) - 1)])]
        for row in rows(benchmark):
            cells = [f"**{cell.text}**" if cell.best else cell.text for cell in row.cells]
            lines.append(_markdown_line([row.group.label, str(len(row.group.runs)), *cells]))
        blocks.append(f"### {benchmark.label}\n\n" + "\n".join(lines))
        differences = [f"- {one}" for one in paired_differences(benchmark)]
        if differences:
            blocks.append(f"{PAIRED}:\n\n" + "\n".join(differences))
    if skipped:
        listed = (f"- `{one.path}`: {one.reason}" for one in skipped)
        blocks.append("Runs left out:\n\n" + "\n".join(listed))
    return "\n\n".join(blocks) + "\n"


def comma_separated(benchmarks: Sequence[Benchmark]) -> str:
    """One line a group, every metric as mean and sample standard deviation in base units."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [f"{column.key}_{part}" for column in COLUMNS for part in ("mean", "std")]
    writer.writerow(["benchmark", "strategy", "backbone", "label", "n", "seeds", *names])
    for benchmark in benchmarks:
        for group in benchmark.groups:
            writer.writerow(_csv_row(benchmark, group))
    return buffer.getvalue()


def records(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One entry a run: names, seed, the settings that differ, every metric in base units, folder.

    A metric that was not measured is None.
    """
    settings = differences([Group([run]) for run in runs])
    return [
        {
            "benchmark": run.benchmark.name,
            "strategy": run.strategy.name,
            "backbone": run.backbone.name,
            "seed": run.seed,
            **{key: values[i] for key, values in settings.items() if key not in _NAMES},
            **{column.key: column.measure(run) for column in COLUMNS},
            "path": str(run.path),
        }
        for i, run in enumerate(runs)
    ]


def terminal(benchmark: Benchmark, width: int) -> Table:
    """The table for :mod:`rich`; the best value of a column is bold and green.

    Columns for which ``width`` characters have no room are left out and named below the table.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(benchmark.label), title_justify="left", title_style="bold",
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    lines, known = rows(benchmark), columns(benchmark)
    longest = max((len(row.group.label) for row in lines), default=0)
    name_width = min(longest, _NAME_WIDTH)
    shown, missing = _fitting(lines, known, width - name_width - len("  Seeds  "))
    table.add_column("Strategy", overflow="fold", min_width=name_width)
    for title in ("Seeds", *(known[i].short for i in shown)):
        table.add_column(title, justify="right", no_wrap=True)
    if missing:
        titles = ", ".join(known[i].short for i in missing)
        table.caption = f"No room for {titles}: see the report, or make the window wider."
    for row in lines:
        marked = [row.cells[i] for i in shown]
        cells = [Text(cell.text, "bold green" if cell.best else "") for cell in marked]
        table.add_row(Text(row.group.label), str(len(row.group.runs)), *cells)
    return table


def _fitting(
    lines: Sequence[Row], known: Sequence[Column], room: int
) -> tuple[list[int], list[int]]:
    """Which columns fit into ``room`` characters, and which do not."""
    short = [i for i, column in enumerate(known) if column.short]
    for place, i in enumerate(short):
        widest = max((len(row.cells[i].text) for row in lines), default=0)
        room -= max(widest, len(known[i].short)) + 2
        if room < 0:
            return short[:place], short[place:]
    return short, []


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _csv_row(benchmark: Benchmark, group: Group) -> list[str]:
    run = group.first
    row = [benchmark.label, run.strategy.name, run.backbone.name, group.label]
    row += [str(len(group.runs)), " ".join(str(seed) for seed in group.seeds)]
    for column in COLUMNS:
        value = group.spread(column.measure)
        row.append("" if value is None else repr(value.mean))
        row.append("" if value is None or value.std is None else repr(value.std))
    return row
