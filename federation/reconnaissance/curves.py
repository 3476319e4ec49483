"""Curves over the steps of a scenario, with confidence intervals over seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from protocl.federation.reconnaissance.measures import BeforeMerge, mean
from protocl.io.atomic import atomic_path
from protocl.report.result import RESULT_FILE

COLUMNS = 3
QUANTITIES = {
    "accuracy": "all classes taught, merged (%)",
    "base": "base classes, merged (%)",
    "field": "field classes, merged (%)",
    "before.mean": "mean of the next three (%)",
    "before.base": "base classes, before the merge (%)",
    "before.earlier": "earlier field classes, before (%)",
    "before.new": "classes new to a client, before (%)",
    "own": "a client's own classes, merged (%)",
    "alone": "all classes, a client that never merges (%)",
    "bytes_up": "sent to be merged",
}
"""What is drawn: accuracies, unless they are bytes. ``before`` is a client's own evaluation after
its mission, the mean over clients (Hendryx et al. 2021 call it the first evaluation)."""


def write_curves(folders: Sequence[Path], out_dir: Path) -> list[Path]:
    """Draw accuracy and costs over the steps of finished runs, one curve a method.

    Runs of the same method with as many clients are taken for repetitions: mean and 95 % interval
    of the mean (Student's t) over their seeds, as far as the shortest of them goes.

    Args:
        folders: of the runs.
        out_dir: receives ``reconnaissance.png``.
    """
    results = [json.loads((folder / RESULT_FILE).read_text(encoding="utf-8")) for folder in folders]
    file = out_dir / "reconnaissance.png"
    figure = draw_curves(_repetitions(results))
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return [file]


def draw_curves(groups: Mapping[str, Sequence[dict[str, Any]]]) -> Figure:
    """One panel for each quantity that was measured, one curve for each of ``groups``.

    Args:
        groups: contents of ``result.json`` by label.
    """
    values = {
        key: {label: series(results, key) for label, results in groups.items()}
        for key in QUANTITIES
    }
    shown = [key for key in QUANTITIES if not all(np.isnan(v).all() for v in values[key].values())]
    rows = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(15, 3.5 * rows + 0.5), layout="constrained")
    for place, key in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, COLUMNS, place)
        for colour, array in enumerate(values[key].values()):
            _draw(axes, array * (1 if key == "bytes_up" else 100), f"C{colour}")
        axes.set(xlabel="step", ylabel=QUANTITIES[key])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if key == "bytes_up":
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(EngFormatter(unit="B"))
    handles = [
        Line2D([], [], color=f"C{colour}", marker=".", label=f"{label} ({_seeds(len(results))})")
        for colour, (label, results) in enumerate(groups.items())
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize="small")
    return figure


def _repetitions(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    numbers = {result["reconnaissance"]["clients"] for result in results}
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        clients = f", {result['reconnaissance']['clients']} clients" if len(numbers) > 1 else ""
        groups.setdefault(result["strategy"]["title"] + clients, []).append(result)
    return groups


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def series(results: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """``(runs, steps)`` of a quantity of every step's report; NaN where it was not measured."""
    rows = [[_value(step, key) for step in r["reconnaissance"]["steps"]] for r in results]
    shortest = min(map(len, rows))
    return np.array([row[:shortest] for row in rows], dtype=float)


def _value(step: Mapping[str, Any], key: str) -> float | None:
    name, _, part = key.partition(".")
    if name != "before":
        value: float | None = step[key]
        return value
    if part == "mean":
        return mean([BeforeMerge(**client).mean for client in step[name]])
    return mean([client[part] for client in step[name]])


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the first axis, and half the width of its 95 % interval; 0 for a single run."""
    from scipy.stats import t

    n = len(values)
    if n == 1:
        return values[0], np.zeros_like(values[0])
    spread = values.std(0, ddof=1) / np.sqrt(n)
    return values.mean(0), t.ppf(0.975, n - 1) * spread


def _draw(axes: Axes, values: np.ndarray, colour: str) -> None:
    if np.isnan(values).all():
        return
    middle, half = interval(values)
    steps = np.arange(1, len(middle) + 1)
    axes.plot(steps, middle, marker=".", color=colour)
    axes.fill_between(steps, middle - half, middle + half, alpha=0.2, color=colour)
