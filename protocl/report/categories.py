"""Pictures of categories: what became of them, which are one, and whether "unknown" is true."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from protocl.report.figures import GRID, INK, PALETTE, panel

State = Literal["known", "discovered", "named", "merged"]

COLOURS: dict[str, str] = {
    "known": PALETTE[0],
    "discovered": PALETTE[4],
    "named": PALETTE[2],
    "merged": PALETTE[6],
}
_MARKS = {"known": "o", "discovered": "D", "named": "s", "merged": "X"}
_MOST_NAMED = 40


@dataclass(frozen=True)
class CategoryLife:
    """What a category was, and from when on.

    Attributes:
        label: what it is called in the end.
        states: steps, ascending, and the state from each on: ``known`` by name from the start,
            ``discovered`` without one, ``named``, or ``merged`` into another, where it ends.
    """

    label: str
    states: Sequence[tuple[int, State]]

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.states]
        if not steps or steps != sorted(set(steps)):
            raise ValueError(f"{self.label}: steps {steps}: expected one or more, ascending")
        odd = {state for _, state in self.states} - set(get_args(State))
        if odd:
            raise ValueError(
                f"{self.label}: state {odd.pop()!r}: expected one of {get_args(State)}"
            )


def category_map(lives: Sequence[CategoryLife], steps: int, *, width: float = 9.0) -> Figure:
    """Categories over time: a line each, coloured by what is known of it.

    Args:
        lives: from top to bottom.
        steps: the last step.
        width: of the figure, in inches.

    Raises:
        ValueError: there is none.
    """
    if not lives:
        raise ValueError("there is no category to show")
    figure, axes = panel(width, 1.4 + 0.22 * min(len(lives), 60))
    for row, life in enumerate(lives):
        _live(axes, -row, life, steps)
    axes.set_xlabel("step")
    axes.set_xlim(-0.3, steps + 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(-len(lives) + 0.4, 0.6)
    named = len(lives) <= _MOST_NAMED
    axes.set_yticks([-row for row in range(len(lives))] if named else [])
    axes.set_yticklabels([life.label for life in lives] if named else [], parse_math=False)
    if not named:
        axes.set_ylabel(f"{len(lives)} categories")
    seen = [
        s for s in get_args(State) if any(s == state for life in lives for _, state in life.states)
    ]
    _legend(figure, seen)
    return figure


def _live(axes: Axes, height: int, life: CategoryLife, steps: int) -> None:
    for (start, state), (end, _) in zip(
        life.states, [*life.states[1:], (steps, "known")], strict=True
    ):
        if state != "merged":
            axes.plot([start, end], [height] * 2, color=COLOURS[state], linewidth=4,
                      solid_capstyle="butt")  # fmt: skip
        axes.plot(start, height, _MARKS[state], color=COLOURS[state], markersize=6)


def _legend(figure: Figure, states: Sequence[str]) -> None:
    handles = [Patch(color=COLOURS[state], label=state) for state in states]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), frameon=False,
        labelcolor=INK,
    )  # fmt: skip


def unknown_reliability(
    scores: Sequence[float], unknown: Sequence[bool], *, bins: int = 10, width: float = 6.0
) -> Figure:
    """How often a sample that is called unknown with a probability is unknown.

    Args:
        scores: ``(N,)`` probabilities of being unknown, in [0, 1].
        unknown: ``(N,)`` whether it was.
        bins: of equal width.
        width: of the figure, in inches.

    Raises:
        ValueError: lengths differ, there is no sample, or a score is out of range.
    """
    shares = reliability(scores, unknown, bins)
    figure, axes = panel(width, 4.6)
    axes.plot([0, 1], [0, 1], color=GRID, linewidth=1.2)
    axes.plot([p for p, _, _ in shares], [q for _, q, _ in shares], color=PALETTE[0], zorder=2)
    most = max(n for _, _, n in shares)
    sizes = [20 + 160 * n / most for _, _, n in shares]
    axes.scatter([p for p, _, _ in shares], [q for _, q, _ in shares], s=sizes,
                 color=PALETTE[0], zorder=3)  # fmt: skip
    axes.set_xlabel("called unknown with probability")
    axes.set_ylabel("share that was unknown")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(color=GRID, linewidth=0.6, alpha=0.6)
    axes.set_title("points by number of samples; on the line the score is true", fontsize=9)
    return figure


def reliability(
    scores: Sequence[float], unknown: Sequence[bool], bins: int = 10
) -> list[tuple[float, float, int]]:
    """Mean score, share of unknown and number of samples of each bin that has some.

    Raises:
        ValueError: as :func:`unknown_reliability`.

    >>> reliability([0.1, 0.15, 0.9], [False, True, True], bins=2)
    [(0.125, 0.5, 2), (0.9, 1.0, 1)]
    """
    if not len(scores) or len(scores) != len(unknown):
        raise ValueError(
            f"{len(scores)} scores, {len(unknown)} truths: expected one or more of both"
        )
    if not all(0 <= score <= 1 for score in scores):
        raise ValueError("a score is outside [0, 1]: expected probabilities of being unknown")
    held: dict[int, list[tuple[float, bool]]] = {}
    for score, was in zip(scores, unknown, strict=True):
        held.setdefault(min(int(score * bins), bins - 1), []).append((score, bool(was)))
    return [
        (sum(s for s, _ in one) / len(one), sum(w for _, w in one) / len(one), len(one))
        for _, one in sorted(held.items())
    ]


@dataclass(frozen=True)
class FoundRow:
    """A row that a client contributed.

    Attributes:
        client: who found it.
        samples: of which it is the sum.
    """

    client: str
    samples: int


def alias_graph(
    rows: Mapping[str, FoundRow], categories: Mapping[str, str], *, width: float = 9.0
) -> Figure:
    """Which rows of which clients are one category.

    A column a client, a line a category, a disc a row whose area is its number of samples; discs of
    one category are joined.

    Args:
        rows: by id.
        categories: id of a row -> what its category is called: a name, or the id of a row.
        width: of the figure, in inches.

    Raises:
        ValueError: there is no row, or one has no category.
    """
    if not rows or rows.keys() - categories.keys():
        missing = sorted(rows.keys() - categories.keys())
        raise ValueError(
            f"rows {missing} have no category" if missing else "there is no row to show"
        )
    clients = sorted({row.client for row in rows.values()})
    lines = list(dict.fromkeys(categories[key] for key in sorted(rows)))
    figure, axes = panel(width, 1.6 + 0.3 * len(lines))
    most = max(row.samples for row in rows.values())
    for height, category in enumerate(lines):
        mine = {key: row for key, row in rows.items() if categories[key] == category}
        _joined(axes, -height, mine, clients, most, PALETTE[height % (len(PALETTE) - 1)])
    axes.set_xticks(range(len(clients)), clients, parse_math=False)
    axes.xaxis.tick_top()
    axes.set_xlim(-0.6, len(clients) - 0.4)
    axes.set_yticks([-height for height in range(len(lines))], lines, parse_math=False)
    axes.set_ylim(-len(lines) + 0.4, 0.6)
    return figure


def _joined(
    axes: Axes,
    height: int,
    rows: Mapping[str, FoundRow],
    clients: Sequence[str],
    most: int,
    colour: str,
) -> None:
    """One category: several rows of one client stand side by side."""
    places = []
    for column, client in enumerate(clients):
        mine = [row for _, row in sorted(rows.items()) if row.client == client]
        for n, row in enumerate(mine):
            shift = 0.22 * (n - (len(mine) - 1) / 2)
            places.append((column + shift, math.sqrt(row.samples / most)))
    if len(places) > 1:
        axes.plot([x for x, _ in places], [height] * len(places), color=colour, linewidth=1.5)
    axes.scatter([x for x, _ in places], [height] * len(places),
                 s=[30 + 170 * size**2 for _, size in places], color=colour, zorder=3)  # fmt: skip
