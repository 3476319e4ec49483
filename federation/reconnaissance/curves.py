"""Curves over the steps of a scenario, with confidence intervals over seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from protocl.runs import RESULT_FILE
from protocl.storage import atomic_path

QUANTITIES = {
    "accuracy": "accuracy on all classes taught",
    "own": "accuracy on a client's own classes",
    "alone": "accuracy of a client that never merges",
    "bytes_up": "bytes up",
}


def write_curves(folders: Sequence[Path], out_dir: Path) -> list[Path]:
    """Draw accuracy and costs over the steps of finished runs, one curve a method.

    Runs of the same title are taken for repetitions: mean and 95 % interval of the mean
    (Student's t) over their seeds, as far as the shortest of them goes.

    Args:
        folders: of the runs.
        out_dir: receives ``reconnaissance.png``.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for folder in folders:
        result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        groups.setdefault(result["strategy"]["title"], []).append(result)
    file = out_dir / "reconnaissance.png"
    figure = draw_curves(groups)
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return [file]


def draw_curves(groups: Mapping[str, Sequence[dict[str, Any]]]) -> Figure:
    """One panel a quantity; ``groups`` holds contents of ``result.json`` by title."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(2, 2).flat, QUANTITIES.items(), strict=True):
        for title, results in groups.items():
            _draw(axes, title, series(results, key), results)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    return figure


def series(results: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """``(runs, steps)`` of a quantity of every step's report; NaN where it was not measured."""
    rows = [[step[key] for step in r["reconnaissance"]["steps"]] for r in results]
    shortest = min(map(len, rows))
    return np.array([row[:shortest] for row in rows], dtype=float)


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the first axis, and half the width of its 95 % interval; 0 for a single run."""
    from scipy.stats import t

    n = len(values)
    if n == 1:
        return values[0], np.zeros_like(values[0])
    spread = values.std(0, ddof=1) / np.sqrt(n)
    return values.mean(0), t.ppf(0.975, n - 1) * spread


def _draw(axes: Axes, title: str, values: np.ndarray, results: Sequence[dict[str, Any]]) -> None:
    if np.isnan(values).all():
        return
    mean, half = interval(values)
    steps = np.arange(1, len(mean) + 1)
    (line,) = axes.plot(steps, mean, label=f"{title} ({len(results)} seeds)", marker=".")
    axes.fill_between(steps, mean - half, mean + half, alpha=0.2, color=line.get_color())
