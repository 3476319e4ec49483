"""Tables, plots and a self-contained HTML page from the results of runs.

Importing this package is cheap: matplotlib, jinja2 and rich are loaded when something is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from protocl.report.comparison import Comparison, compare
from protocl.report.runs import Run, Skipped, load_run, load_runs

__all__ = ["Comparison", "Run", "Skipped", "compare", "load_run", "load_runs", "plot_run"]


def plot_run(result: dict[str, Any], out_dir: Path) -> list[Path]:
    """Draw one run: accuracy curve, accuracy matrix and confusion matrix, as PNG files.

    Args:
        result: content of a ``result.json``; it may be of a run that is still going on.
        out_dir: folder that receives the files; made when absent.

    Returns:
        The files written.

    Raises:
        DataError: ``result`` is not a valid result.
    """
    from protocl.report.plots import write_plots

    return write_plots(Run.from_result(result, Path(out_dir)), Path(out_dir))
