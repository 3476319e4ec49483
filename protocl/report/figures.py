"""Figures of accuracies and confusions; every function returns a new figure, nothing is global.

Colours are those of Okabe & Ito ("Color Universal Design", 2008) and the maps "cividis" and
"viridis": all can be told apart with any colour vision. Text and lines use one ink colour, which
the HTML report replaces by the reader's light or dark theme.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from protocl.metrics import MeanAndSpread
from protocl.report.runs import Run

INK = "#1c2733"
GRID = "#c9d1da"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
_LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MOST_ANNOTATED = 12
_MOST_NAMED = 20
LABEL_WIDTH = 44
"""Characters in a line of a label; longer ones would leave no room for what they name."""


class Picture(Figure):
    """A figure that a notebook shows, whether or not it has set up pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", bbox_inches="tight")
        return buffer.getvalue()


@dataclass(frozen=True)
class Curve:
    """Accuracy of one strategy over the stream.

    Attributes:
        label: what the legend says.
        classes_seen: ``(T,)`` number of classes seen at each point.
        accuracy: ``(T,)`` mean and spread of the stream accuracy, in [0, 1].
    """

    label: str
    classes_seen: Sequence[int]
    accuracy: Sequence[MeanAndSpread]


@dataclass(frozen=True)
class RoundCurve:
    """Accuracy of one federation over its rounds.

    Attributes:
        label: what the legend says.
        accuracy: ``(R,)`` mean and spread after each round, in [0, 1].
        exchanged: ``(R,)`` bytes up and down until then.
    """

    label: str
    accuracy: Sequence[MeanAndSpread]
    exchanged: Sequence[float]


def round_curves(curves: Sequence[RoundCurve], *, width: float = 11.4) -> Figure:
    """Accuracy (%) against rounds (left) and against megabytes exchanged (right, logarithmic).

    Args:
        curves: in the order of the legend.
        width: of the figure, in inches.
    """
    figure, left = panel(width, beside_legend(4.0, (curve.label for curve in curves)), columns=2)
    right = figure.axes[1]
    for i, curve in enumerate(curves):
        rounds = range(1, len(curve.accuracy) + 1)
        _draw(left, i, rounds, curve.accuracy, curve.label)
        _draw(right, i, [size / 1e6 for size in curve.exchanged], curve.accuracy, curve.label)
    left.set_xlabel("round")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_ylabel("accuracy (%)")
    right.set_xlabel("MB up and down, all clients")
    right.set_xscale("log")
    for axes in (left, right):
        axes.set_ylim(0, 102)
        axes.grid(color=GRID, linewidth=0.6, alpha=0.6)
    if len(curves) > 1:
        legend(right)
    return figure


def accuracy_curves(curves: Sequence[Curve], *, width: float = 11.4) -> Figure:
    """Accuracy on all classes seen (%) against their number; bands are one standard deviation.

    Args:
        curves: in the order of the legend.
        width: of the figure, in inches.
    """
    figure, axes = panel(width, beside_legend(4.4, (curve.label for curve in curves)))
    for i, curve in enumerate(curves):
        _draw(axes, i, curve.classes_seen, curve.accuracy, curve.label)
    axes.set_xlabel("classes seen")
    axes.set_ylabel("accuracy on all classes seen (%)")
    axes.set_ylim(0, 102)
    points = sorted({n for curve in curves for n in curve.classes_seen})
    if len(points) <= _MOST_ANNOTATED:
        axes.set_xticks(points)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=GRID, linewidth=0.6, alpha=0.6)
    if len(curves) > 1:
        legend(axes)
    return figure


def set_title(figure: Figure, title: str) -> None:
    """Put ``title`` over a figure that stands alone."""
    figure.axes[0].set_title(title, color=INK, fontsize=10, loc="left")


def final_bars(labels: Sequence[str], accuracy: Sequence[MeanAndSpread]) -> Figure:
    """Last accuracy (%) of each strategy, with one standard deviation."""
    figure, axes = _bar_panel(labels)
    for i, value in enumerate(accuracy):
        color = PALETTE[i % len(PALETTE)]
        spread = 100 * value.std if value.std is not None else None
        axes.barh(
            i, 100 * value.mean, xerr=spread, color=color, height=0.66,
            error_kw={"ecolor": INK, "capsize": 3, "elinewidth": 1.2},
        )  # fmt: skip
        end = 100 * value.mean + (spread or 0) + 1
        axes.text(end, i, f"{100 * value.mean:.1f}", va="center", fontsize=9, color=INK)
    axes.set_xlim(0, 108)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy on all classes after the last experience (%)")
    axes.grid(axis="x", color=GRID, linewidth=0.6, alpha=0.6)
    return figure


def phase_bars(labels: Sequence[str], seconds: Mapping[str, Sequence[float]]) -> Figure:
    """Mean wall time (s) of each strategy, split by phase.

    Args:
        labels: one name a strategy.
        seconds: phase -> one value a strategy.
    """
    figure, axes = _bar_panel(labels)
    left = np.zeros(len(labels))
    for color, (phase, values) in zip(cycle(PALETTE), seconds.items(), strict=False):
        axes.barh(range(len(labels)), values, left=left, color=color, height=0.66, label=phase)
        left += np.array(values)
    axes.set_xlabel("wall time (s), mean over seeds")
    axes.grid(axis="x", color=GRID, linewidth=0.6, alpha=0.6)
    _legend_above(axes, columns=len(seconds))
    return figure


def accuracy_matrix(matrix: Sequence[Sequence[float]]) -> Figure:
    """Heat map of the lower-triangular accuracy matrix (%)."""
    n = len(matrix)
    values = np.full((n, n), np.nan)
    for t, row in enumerate(matrix):
        values[t, : t + 1] = 100 * np.array(row)
    figure, axes = panel(4.0, 3.5)
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=100, interpolation="none")
    if n <= _MOST_ANNOTATED:
        _annotate(axes, values, "{:.0f}", bright=values > 55)
    axes.set_xlabel("test experience")
    axes.set_ylabel("after training on experience")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=min(n, 12), integer=True, min_n_ticks=1))
    _color_bar(figure, axes, image, "accuracy (%)")
    return figure


def confusion_matrix(run: Run, *, width: float = 4.0, most_cells: int = 120) -> Figure:
    """Heat map of the share of each true class (%) answered as each predicted class.

    Classes stand in the order in which they were learnt. Up to 20 are named; more are marked by
    experience. Where there are more than ``most_cells``, neighbours are pooled into cells of
    equally many classes (the share of a cell's true classes answered as any class of another),
    as a screen would drop single classes at random. The colour scale is a square root: one
    wrong answer in a hundred can still be seen.

    Args:
        run: a run with at least one evaluation.
        width: of the figure, in inches.
        most_cells: rows that are wide enough to be seen at this width.
    """
    order, boundaries = _learning_order(run)
    pooled = -(-len(order) // most_cells)
    share = _pooled_share(_counts_in_order(run, order), pooled)
    figure, axes = panel(width, 0.87 * width)
    norm = PowerNorm(0.5, vmin=0, vmax=100)
    extent = (-0.5, pooled * len(share) - 0.5, pooled * len(share) - 0.5, -0.5)
    image = axes.imshow(share, cmap="viridis", norm=norm, interpolation="none", extent=extent)
    if len(order) <= _MOST_NAMED:
        _name_classes(axes, [run.class_name(class_id) for class_id in order])
        if len(order) <= _MOST_ANNOTATED:
            _annotate(axes, np.where(share >= 0.5, share, np.nan), "{:.0f}", bright=share > 45)
    else:
        _mark_experiences(axes, boundaries)
    unit = "class" if pooled == 1 else f"{pooled} classes"
    bar = _color_bar(figure, axes, image, f"share of the true {unit} (%)")
    bar.set_yticks([0, 1, 5, 10, 25, 50, 100])
    return figure


def _learning_order(run: Run) -> tuple[list[int], list[int]]:
    """Class ids of the confusion in learning order, and where each experience ends."""
    known = set(run.confusion.classes)
    order: list[int] = []
    boundaries = []
    for classes in run.experiences:
        order += [class_id for class_id in sorted(classes) if class_id in known]
        boundaries.append(len(order))
    # Answers can also be classes that are no part of the stream.
    order += sorted(known.difference(order))
    return order, boundaries


def _counts_in_order(run: Run, order: Sequence[int]) -> np.ndarray:
    position = {class_id: i for i, class_id in enumerate(run.confusion.classes)}
    index = [position[class_id] for class_id in order]
    return np.array(run.confusion.counts, dtype=float)[np.ix_(index, index)]


def _pooled_share(counts: np.ndarray, pooled: int) -> np.ndarray:
    """Counts ``(C, C)`` as row shares (%) of cells of ``pooled`` classes, the last one padded."""
    cells = -(-len(counts) // pooled)
    padded = np.pad(counts, (0, cells * pooled - len(counts)))
    sums = padded.reshape(cells, pooled, cells, pooled).sum(axis=(1, 3))
    totals = sums.sum(axis=1, keepdims=True)
    return 100 * np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)


def beside_legend(height: float, labels: Iterable[str]) -> float:
    """``height`` (inches), or what the legend needs beside the axes."""
    lines = sum(fill(label, LABEL_WIDTH).count("\n") + 1 for label in labels)
    return max(height, 0.6 + 0.18 * lines)


def _bar_panel(labels: Sequence[str]) -> tuple[Figure, Axes]:
    """A panel of horizontal bars, one for each label, from top to bottom."""
    named = [fill(label, LABEL_WIDTH) for label in labels]
    lines = max((name.count("\n") + 1 for name in named), default=1)
    figure, axes = panel(5.8, 0.9 + (0.18 + 0.16 * lines) * len(named))
    axes.set_yticks(range(len(named)), named)
    axes.set_ylim(len(named) - 0.5, -0.5)
    return figure, axes


def _draw(
    axes: Axes, i: int, x: Sequence[float], accuracy: Sequence[MeanAndSpread], label: str
) -> None:
    """The ``i``-th curve (%) with a band of one standard deviation."""
    mean = 100 * np.array([point.mean for point in accuracy])
    spread = 100 * np.array([point.std or 0.0 for point in accuracy])
    color = PALETTE[i % len(PALETTE)]
    style = _LINES[i // len(PALETTE) % len(_LINES)]
    marker = MARKERS[i % len(MARKERS)]
    axes.fill_between(x, mean - spread, mean + spread, color=color, alpha=0.18, linewidth=0)
    axes.plot(
        x, mean, color=color, linestyle=style, marker=marker, markersize=4.5, linewidth=1.8,
        label=fill(label, LABEL_WIDTH),
    )  # fmt: skip


def panel(width: float, height: float, columns: int = 1) -> tuple[Figure, Axes]:
    """An empty figure (inches) in the house style, and its first set of axes."""
    figure = Picture(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    panels = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axes in panels:
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GRID)
        axes.tick_params(colors=INK, labelsize=9, color=GRID)
        axes.xaxis.label.set(color=INK, fontsize=10)
        axes.yaxis.label.set(color=INK, fontsize=10)
        axes.set_axisbelow(True)
    return figure, panels[0]


def legend(axes: Axes) -> None:
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9, labelcolor=INK,
        borderaxespad=0.0,
    )  # fmt: skip


def _legend_above(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.01), ncols=columns, frameon=False, fontsize=9,
        labelcolor=INK, borderaxespad=0.0, handlelength=1.0, columnspacing=1.2,
    )  # fmt: skip


def _color_bar(figure: Figure, axes: Axes, image: object, label: str) -> Axes:
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)  # type: ignore[arg-type]
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=8, color=GRID)
    bar.set_label(label, color=INK, fontsize=9)
    return bar.ax


def _annotate(axes: Axes, values: np.ndarray, form: str, bright: np.ndarray) -> None:
    """Write each number that is not NaN in its cell, dark where the cell is bright."""
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            color = "#101010" if bright[row, column] else "#ffffff"
            axes.text(
                column, row, form.format(value), ha="center", va="center", fontsize=8, color=color
            )


def _name_classes(axes: Axes, names: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 3 else 0)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")


def _mark_experiences(axes: Axes, boundaries: Sequence[int]) -> None:
    starts = [0, *boundaries[:-1]]
    centers = [(start + end - 1) / 2 for start, end in zip(starts, boundaries, strict=True)]
    every = -(-len(boundaries) // 12)
    labels = [str(t) for t in range(len(boundaries))]
    axes.set_xticks(centers[::every], labels[::every])
    axes.set_yticks(centers[::every], labels[::every])
    for end in boundaries[:-1] if len(boundaries) <= _MOST_ANNOTATED else ():
        axes.axhline(end - 0.5, color="#ffffff", linewidth=0.4, alpha=0.35)
        axes.axvline(end - 0.5, color="#ffffff", linewidth=0.4, alpha=0.35)
    axes.set_xlabel("predicted class, by experience")
    axes.set_ylabel("true class, by experience")
