"""The command ``protocl compare``: read runs, group them, write and show the result."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from protocl.config.validation import require_choice
from protocl.errors import ConfigError, DataError
from protocl.io.atomic import atomic_write
from protocl.registry import unknown_name
from protocl.report import table
from protocl.report.groups import Benchmark, group_runs
from protocl.report.paired import Difference, paired_differences
from protocl.report.runs import Skipped, load_runs

if TYPE_CHECKING:
    from rich.console import Console

_TEXT_WIDTH = 100
FORMATS = {
    "html": "report.html",
    "markdown": "table.md",
    "csv": "table.csv",
    "latex": "table.tex",
    "bibtex": "references.bib",
}
USUAL = ("html", "markdown", "csv")
"""What is written unless somebody asks for more."""
FIGURES = (".pdf", ".svg", ".png")


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

    def differences(self, confidence: float = 0.95) -> list[Difference]:
        """What each method is away from the best of its benchmark, on the same seeds.

        See :func:`protocl.report.paired.paired_differences`.
        """
        return [
            difference
            for benchmark in self.benchmarks
            for difference in paired_differences(benchmark, confidence)
        ]

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
    formats: Sequence[str] = USUAL,
    figure: Path | None = None,
    against: Literal["classes", "bytes"] = "classes",
    console: Console | None = None,
) -> Comparison:
    """Compare runs: mean and spread over seeds of every configuration found.

    Args:
        paths: run directories, folders that hold them at any depth, result files, or globs.
        output: folder for the files of ``formats``; None writes none of them.
        formats: which of ``"html"``, ``"markdown"``, ``"csv"``, ``"latex"`` (booktabs) and
            ``"bibtex"`` (what to cite) to write.
        figure: file for the one figure that says most, ``.pdf``, ``.svg`` or ``.png``; of runs on
            one benchmark. None writes none.
        against: what the figure shows accuracies against: ``"classes"`` seen (or rounds), or
            ``"bytes"`` sent by clients, or kept where there are none.
        console: where to print the tables and the runs left out; None prints nothing.

    Raises:
        ConfigError: an unknown format, or a figure of several benchmarks.
        ValueError: ``against`` is neither.
        DataError: no complete run was found; the message lists what was, and why it is not one.
    """
    _check_formats(formats)
    require_choice("against", against, ("classes", "bytes"))
    if figure is not None:
        _check_figure(Path(figure))
    runs, skipped = load_runs(paths)
    if not runs:
        raise DataError("no complete run to compare" + _listed(skipped))
    benchmarks, repeated = group_runs(runs)
    skipped += repeated
    drawn = [] if figure is None else _draw(Path(figure), benchmarks, against)
    written = [] if output is None else _write(Path(output), formats, benchmarks, skipped)
    written += drawn
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


def _check_figure(figure: Path) -> None:
    if figure.suffix.lower() not in FIGURES:
        raise ConfigError(f"figure '{figure}': expected a file that ends in {', '.join(FIGURES)}")


def _draw(figure: Path, benchmarks: list[Benchmark], against: str) -> list[Path]:
    if len(benchmarks) > 1:
        labels = "; ".join(one.label for one in benchmarks)
        raise ConfigError(
            f"--figure shows one benchmark, and these runs are of {len(benchmarks)} ({labels}): "
            "name the runs of one"
        )
    from protocl.report.plots import bytes_overview, overview, picture

    drawn = (bytes_overview if against == "bytes" else overview)(benchmarks[0])
    atomic_write(figure, picture(drawn, figure.suffix.lower().lstrip(".")))
    return [figure]


def _write(
    output: Path, formats: Sequence[str], benchmarks: list[Benchmark], skipped: list[Skipped]
) -> list[Path]:
    written = []
    for name in (name for name in FORMATS if name in formats):
        atomic_write(output / FORMATS[name], _content(name, benchmarks, skipped))
        written.append(output / FORMATS[name])
    return written


def _content(name: str, benchmarks: list[Benchmark], skipped: list[Skipped]) -> str:
    if name == "html":
        from protocl.report.page import render

        return render(benchmarks, skipped)
    if name == "latex":
        from protocl.report.paper.latex import latex

        return latex(benchmarks)
    if name == "bibtex":
        from protocl.report.paper.references import bibliography

        return bibliography(benchmarks)
    if name == "csv":
        return table.comma_separated(benchmarks)
    return table.markdown(benchmarks, skipped)


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
