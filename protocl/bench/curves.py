"""Curves of the comparisons that lie on one; apart, since drawing is slow to import."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from protocl.bench.comparison import SpeedComparison
from protocl.report.scaling import CostCurve, cost_curves

_LEAST_DRAWN = {"s": 0.0, "MiB": 1.0}
"""What is less is noise, and has no place on a logarithmic axis."""


def curves(comparisons: Sequence[SpeedComparison]) -> Figure:
    """Time and memory of the comparisons that lie on curves, against the number of classes."""
    panels = []
    for unit, label in (("s", "seconds"), ("MiB", "peak memory (MiB)")):
        named: dict[str, list[tuple[int, SpeedComparison]]] = {}
        for comparison in comparisons:
            drawn = comparison.unit == unit and comparison.ours >= _LEAST_DRAWN[unit]
            if comparison.point is not None and drawn:
                name, classes = comparison.point.curve, comparison.point.classes
                named.setdefault(name, []).append((classes, comparison))
        panels.append((label, [_curve(name, points) for name, points in named.items()]))
    return cost_curves(panels, size_label="classes")


def _curve(name: str, points: Sequence[tuple[int, SpeedComparison]]) -> CostCurve:
    least = [point.peer for _, point in points if point.peer is not None]
    return CostCurve(
        name,
        [classes for classes, _ in points],
        [point.ours for _, point in points],
        least if len(least) == len(points) else None,
    )
