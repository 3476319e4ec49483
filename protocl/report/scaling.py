"""Cost on logarithmic axes: against size, beside the least that it can be; and accuracy for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from protocl.metrics import MeanAndSpread
from protocl.report.figures import (
    GRID,
    LABEL_WIDTH,
    MARKERS,
    PALETTE,
    beside_legend,
    legend,
    panel,
)


@dataclass(frozen=True)
class CostCurve:
    """What one operation costs.

    Attributes:
        label: what the legend says.
        sizes: ``(P,)``, > 0.
        costs: ``(P,)``, > 0.
        least: ``(P,)`` what the arithmetic costs alone; None where there is no such bound.
    """

    label: str
    sizes: Sequence[int]
    costs: Sequence[float]
    least: Sequence[float] | None


def cost_curves(panels: Sequence[tuple[str, Sequence[CostCurve]]], *, size_label: str) -> Figure:
    """One panel for each kind of cost; the least is dotted, in the colour of its curve.

    Args:
        panels: label of the vertical axis and the curves, from left to right.
        size_label: of the horizontal axis.
    """
    labels = dict.fromkeys(curve.label for _, curves in panels for curve in curves)
    colors = dict(zip(labels, cycle(PALETTE), strict=False))
    figure, _ = panel(11.4, 4.2, columns=len(panels))
    for axes, (label, curves) in zip(figure.axes, panels, strict=True):
        for curve in curves:
            _draw(axes, colors[curve.label], curve)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(size_label)
        axes.set_ylabel(label)
        axes.grid(color=GRID, linewidth=0.6, alpha=0.6)
    last = figure.axes[-1]
    for label in labels.keys() - {curve.label for curve in panels[-1][1]}:
        last.plot([], [], color=colors[label], marker="o", markersize=4.5, label=label)
    last.plot([], [], color="#7f7f7f", linestyle=":", label="arithmetic limit")
    legend(last)
    return figure


def _draw(axes: Axes, color: str, curve: CostCurve) -> None:
    axes.plot(
        curve.sizes, curve.costs, color=color, marker="o", markersize=4.5, linewidth=1.8,
        label=curve.label,
    )  # fmt: skip
    if curve.least is not None:
        axes.plot(curve.sizes, curve.least, color=color, linestyle=":", linewidth=1.6)


@dataclass(frozen=True)
class CostPoint:
    """Accuracy of one method, and the bytes that it costs.

    Attributes:
        label: what the legend says.
        megabytes: sent by all clients, or kept between experiences.
        sent: which of both.
        accuracy: last accuracy, in [0, 1].
    """

    label: str
    megabytes: float
    sent: bool
    accuracy: MeanAndSpread

    @property
    def line(self) -> str:
        """The label with the bytes."""
        return f"{self.label}: {self.megabytes:,.4g} MB {'sent' if self.sent else 'kept'}"


def accuracy_against_bytes(points: Sequence[CostPoint], *, width: float = 11.4) -> Figure:
    """Last accuracy (%) against megabytes (logarithmic), with one standard deviation.

    Filled markers: sent by all clients of a federation; hollow ones: kept in one place.
    """
    figure, axes = panel(width, beside_legend(4.2, (point.line for point in points)))
    for i, point in enumerate(points):
        color = PALETTE[i % len(PALETTE)]
        spread = None if point.accuracy.std is None else 100 * point.accuracy.std
        axes.errorbar(
            point.megabytes, 100 * point.accuracy.mean, yerr=spread,
            color=color, marker=MARKERS[i % len(MARKERS)], markersize=7, linestyle="none",
            markerfacecolor=color if point.sent else "none", capsize=3,
            label=fill(point.line, LABEL_WIDTH),
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("MB sent by all clients (filled), or kept (hollow)")
    axes.set_ylabel("last accuracy (%)")
    axes.grid(color=GRID, linewidth=0.6, alpha=0.6)
    legend(axes)
    return figure
