"""The summary tables for a paper: LaTeX with the package ``booktabs``."""

from __future__ import annotations

from collections.abc import Sequence

from protocl.report import table
from protocl.report.columns import NO_VALUE
from protocl.report.groups import Benchmark

_SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
        "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "·": r"$\cdot$",
    }
)  # fmt: skip


def latex(benchmarks: Sequence[Benchmark]) -> str:
    """One ``table`` a benchmark, to be read by ``\\input``; the best value of a column is bold."""
    head = "% Needs \\usepackage{booktabs}. Mean and sample standard deviation over seeds.\n"
    return head + "\n".join(_table(benchmark) for benchmark in benchmarks)


def _table(benchmark: Benchmark) -> str:
    columns = table.columns(benchmark)
    shown = [i for i, column in enumerate(columns) if column.short]
    titles = [columns[i].title for i in shown]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(benchmark.label)}}}",
        rf"\begin{{tabular}}{{l{'r' * (1 + len(shown))}}}",
        r"\toprule",
        _row(["Method", "Seeds", *map(escaped, titles)]),
        r"\midrule",
        *(_line(row, shown) for row in table.rows(benchmark)),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _line(row: table.Row, shown: Sequence[int]) -> str:
    cells = [row.cells[i] for i in shown]
    texts = [rf"\textbf{{{escaped(one.text)}}}" if one.best else escaped(one.text) for one in cells]
    return _row([escaped(row.group.label), str(len(row.group.runs)), *texts])


def _row(cells: Sequence[str]) -> str:
    return " & ".join("--" if cell == NO_VALUE else cell for cell in cells) + r" \\"


def escaped(text: str) -> str:
    r"""Text that LaTeX prints as it stands.

    >>> print(escaped("RanPAC_1000, 5 % & more"))
    RanPAC\_1000, 5 \% \& more
    """
    return text.translate(_SPECIAL)
