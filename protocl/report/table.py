"""The summary table: one row a group, one column a metric, in text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protocl.report.columns import Column, columns_of
from protocl.report.groups import Benchmark, Group, differences
from protocl.report.paired import paired_differences
from protocl.report.runs import Run, Skipped

if TYPE_CHECKING:
    from rich.table import Table

PAIRED = "Last accuracy on the same seeds, difference in points [95 % confidence interval]"

_NAMES = frozenset({"benchmark.name", "strategy.name", "backbone.name", "method.name"})
_NAME_WIDTH = 20
"""Characters of a strategy's name that a narrow terminal does not break."""


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


def columns(benchmark: Benchmark) -> list[Column]:
    """The columns that say something about a benchmark, and hold a value for one group at least."""
    return [
        column
        for column in columns_of(run for group in benchmark.groups for run in group.runs)
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
    groups = [group for benchmark in benchmarks for group in benchmark.groups]
    shown = columns_of(run for group in groups for run in group.runs)
    names = [f"{column.key}_{part}" for column in shown for part in ("mean", "std")]
    writer.writerow(["benchmark", "strategy", "backbone", "label", "n", "seeds", *names])
    for benchmark in benchmarks:
        for group in benchmark.groups:
            writer.writerow(_csv_row(benchmark, group, shown))
    return buffer.getvalue()


def records(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One entry a run: names, seed, the settings that differ, every metric in base units, folder.

    A metric that was not measured is None.
    """
    settings = differences([Group([run]) for run in runs])
    shown = columns_of(runs)
    return [
        {
            "benchmark": run.benchmark.name,
            "strategy": run.strategy.name,
            "backbone": run.backbone.name,
            "seed": run.seed,
            **{key: values[i] for key, values in settings.items() if key not in _NAMES},
            **{column.key: column.measure(run) for column in shown},
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


def _csv_row(benchmark: Benchmark, group: Group, shown: Sequence[Column]) -> list[str]:
    run = group.first
    row = [benchmark.label, run.strategy.name, run.backbone.name, group.label]
    row += [str(len(group.runs)), " ".join(str(seed) for seed in group.seeds)]
    for column in shown:
        value = group.spread(column.measure)
        row.append("" if value is None else repr(value.mean))
        row.append("" if value is None or value.std is None else repr(value.std))
    return row
