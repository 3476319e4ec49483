"""The command ``protocl compare``: read runs, group them, write and show the result."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from protocl.errors import ConfigError, DataError
from protocl.io.atomic import atomic_write
from protocl.registry import unknown_name
from protocl.report import table
from protocl.report.groups import Benchmark, group_runs
from protocl.report.runs import Skipped, load_runs

if TYPE_CHECKING:
    from rich.console import Console

_TEXT_WIDTH = 100
FORMATS = {"html": "report.html", "markdown": "table.md", "csv": "table.csv"}


@dataclass(frozen=True)
class Comparison:
    """Runs, grouped and ready to be shown.

    Attributes:
        benchmarks: groups of runs, by the stream they were measured on.
        skipped: runs that are in no group, each with the reason.
        written: files that were written.
    """

    benchmarks: list[Benchmark]
    skipped: list[Skipped]
    written: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        """The tables as text of at most 100 columns."""
        from rich.console import Console

        text = io.StringIO()
        show(self, Console(file=text, width=_TEXT_WIDTH, force_jupyter=False, color_system=None))
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    __repr__ = __str__

    def markdown(self) -> str:
        """The tables in GitHub's Markdown; the best value of a column is bold."""
        return table.markdown(self.benchmarks, self.skipped)

    def _repr_html_(self) -> str:
        """The tables as notebooks show them."""
        from protocl.report.page_template import fill

        sections = [
            {"benchmark": one, "columns": table.columns(one), "rows": table.rows(one)}
            for one in self.benchmarks
        ]
        return fill("notebook.html.j2", sections=sections, skipped=self.skipped)


def compare(
    paths: Iterable[Path | str],
    output: Path | None = None,
    *,
    formats: Sequence[str] = tuple(FORMATS),
    console: Console | None = None,
) -> Comparison:
    """Compare runs: mean and spread over seeds of every configuration found.

    Args:
        paths: run directories, folders that hold them at any depth, result files, or globs.
        output: folder for ``report.html``, ``table.md`` and ``table.csv``; None writes nothing.
        formats: which of ``"html"``, ``"markdown"`` and ``"csv"`` to write.
        console: where to print the tables and the runs left out; None prints nothing.

    Raises:
        ConfigError: an unknown format.
        DataError: no complete run was found; the message lists what was, and why it is not one.
    """
    _check_formats(formats)
    runs, skipped = load_runs(paths)
    if not runs:
        raise DataError("no complete run to compare" + _listed(skipped))
    benchmarks, repeated = group_runs(runs)
    skipped += repeated
    written = [] if output is None else _write(Path(output), formats, benchmarks, skipped)
    comparison = Comparison(benchmarks, skipped, written)
    if console is not None:
        show(comparison, console)
    return comparison


def _check_formats(formats: Sequence[str]) -> None:
    for name in formats:
        if name not in FORMATS:
            raise unknown_name("format", name, FORMATS)
    if not formats:
        raise ConfigError(f"no format given: choose from {', '.join(FORMATS)}")


def _write(
    output: Path, formats: Sequence[str], benchmarks: list[Benchmark], skipped: list[Skipped]
) -> list[Path]:
    content = {}
    if "html" in formats:
        from protocl.report.page import render

        content["html"] = render(benchmarks, skipped)
    if "markdown" in formats:
        content["markdown"] = table.markdown(benchmarks, skipped)
    if "csv" in formats:
        content["csv"] = table.comma_separated(benchmarks)
    written = []
    for name, text in content.items():
        atomic_write(output / FORMATS[name], text)
        written.append(output / FORMATS[name])
    return written


def show(comparison: Comparison, console: Console) -> None:
    """Print the tables, the runs left out and the files written."""
    from rich.text import Text

    for benchmark in comparison.benchmarks:
        console.print(table.terminal(benchmark, console.width))
        for group in benchmark.groups:
            for note in group.notes:
                console.print(Text(f"{group.label}: {note}", "yellow"))
    if comparison.skipped:
        console.print(Text("Runs left out" + _listed(comparison.skipped), "yellow"), soft_wrap=True)
    for path in comparison.written:
        console.print(Text(f"wrote {path}"), soft_wrap=True)


def _listed(skipped: Sequence[Skipped]) -> str:
    return ":" + "".join(f"\n  {one.path}: {one.reason}" for one in skipped)
