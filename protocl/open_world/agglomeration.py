"""Which rows are one category: joined pair by pair, the surest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocl.config.validation import is_number
from protocl.open_world.categories import Rows

NAMELESS = -1


class Comparison(Protocol):
    """What says how alike rows are: :class:`.TwoCovariance`, or a plain linkage."""

    def same(self, left: Rows, right: Rows) -> Tensor:
        """``(R, Q)`` float64, high for alike, of ``R`` and ``Q`` rows; symmetric."""


@dataclass(frozen=True)
class Joins:
    """The order in which rows join, whatever the offset at which joining stops.

    Attributes:
        pairs: ``(J, 2)`` int64 places of rows; the second goes into the first, which is the
            smaller.
        ratios: ``(J,)`` float64 log odds ratio of each pair when it joined.
        n_rows: number of rows.
    """

    pairs: NDArray[np.int64]
    ratios: NDArray[np.float64]
    n_rows: int

    def groups(self, offset: float = 0.0) -> Tensor:
        """The group ``(R,)`` int64 of each row, from 0 in the order of their first rows.

        Args:
            offset: joining stops at the first pair whose ratio is not above it.

        Raises:
            ValueError: the offset is no number.
        """
        require_offset(offset)
        first = np.arange(self.n_rows)
        for (kept, gone), ratio in zip(self.pairs, self.ratios, strict=True):
            if not ratio > offset:
                break
            first[first == gone] = kept
        return torch.from_numpy(np.unique(first, return_inverse=True)[1].astype(np.int64))


def agglomerate(
    evidence: Comparison,
    rows: Rows,
    *,
    names: Sequence[int] | Tensor | None = None,
    lowest: float = -500.0,
) -> Joins:
    """Join the pair of rows with the largest ratio, as long as there is one above ``lowest``.

    Joining is addition: the ratios of a joined row follow from its sums, and are no means of
    ratios. The order of joins does not depend on where it stops, so one call serves all offsets
    (:meth:`Joins.groups`). Of equal ratios the rows of the smallest ids join.

    Args:
        evidence: fitted; or another comparison (:mod:`.linkages`), whose values stand in the place
            of ratios.
        rows: with ascending ids; memory and time grow with ``R^2``.
        names: ``(R,)`` the name that each row bears, as a number, or -1 for none; rows of two
            different names, and what has joined them, never join.
        lowest: ratio at which to stop.

    Raises:
        ValueError: ids do not ascend, there are not as many names as rows, or ``lowest`` is no
            number.

    Example:
        >>> from protocl.memory import PrototypeMemory
        >>> from protocl.open_world.evidence import TwoCovariance
        >>> features = torch.tensor([[0.0, 1], [1, 0], [9, 0], [8, 1], [0, 8], [1, 9]])
        >>> memory = PrototypeMemory(2, level="shared").update(
        ...     features, torch.tensor([4, 4, 7, 7, 9, 9]))
        >>> evidence = TwoCovariance(shrinkage=0.0).fit(memory)
        >>> agglomerate(evidence, evidence.of_samples(features)).groups().tolist()
        [0, 0, 1, 1, 2, 2]
    """
    require_offset(lowest)
    if len(rows) > 1 and not bool((rows.ids.diff() > 0).all()):
        raise ValueError("agglomerate: the ids of rows must ascend, each once; sort them first")
    borne = np.full(len(rows), NAMELESS) if names is None else np.array(names, dtype=np.int64)
    if len(borne) != len(rows):
        raise ValueError(f"agglomerate: {len(borne)} names for {len(rows)} rows")
    run = _Run(evidence, rows, borne)
    pairs: list[tuple[int, int]] = []
    ratios: list[float] = []
    while (best := run.best()) is not None and best[2] > lowest:
        pairs.append(best[:2])
        ratios.append(best[2])
        run.join(best[0], best[1])
    return Joins(np.array(pairs, np.int64).reshape(-1, 2), np.array(ratios), len(rows))


def require_offset(offset: object) -> None:
    """Refuse a log odds ratio that nothing is above or below.

    Raises:
        ValueError: it is no number, or NaN.
    """
    if not is_number(offset) or offset != offset:
        raise ValueError(
            f"offset={offset!r}: expected a log odds ratio, such as 0.0 or -100.0 "
            "(OffsetTable chooses one)"
        )


class _Run:
    """Rows as they join. A pair of places is looked up with the smaller first.

    Attributes:
        ratios: ``(R, R)``, above the diagonal; minus infinity for what cannot join.
        partner, value: ``(R,)`` the best partner behind each place, and the ratio to it.
    """

    def __init__(self, evidence: Comparison, rows: Rows, names: NDArray[np.int64]) -> None:
        self.evidence, self.names = evidence, names
        self.counts, self.coordinates = rows.counts.clone(), rows.coordinates.clone()
        self.alive = np.ones(len(rows), bool)
        ratios = evidence.same(rows, rows).cpu().numpy()
        ratios[np.tril_indices(len(rows))] = -np.inf
        named = names != NAMELESS
        ratios[named[:, None] & named & (names[:, None] != names)] = -np.inf
        self.ratios = ratios
        self.partner = ratios.argmax(1) if len(rows) else np.zeros(0, np.int64)
        self.value = ratios.max(1, initial=-np.inf)

    def best(self) -> tuple[int, int, float] | None:
        """The pair to join next, and its ratio."""
        if not len(self.value):
            return None
        first = int(self.value.argmax())
        return first, int(self.partner[first]), float(self.value[first])

    def join(self, kept: int, gone: int) -> None:
        """Add the sums of one row to those of another, and compare it anew with all."""
        self.counts[kept] += self.counts[gone]
        self.coordinates[kept] += self.coordinates[gone]
        self.names[kept] = max(self.names[kept], self.names[gone])
        self.alive[gone] = False
        self.ratios[gone], self.ratios[:, gone] = -np.inf, -np.inf
        self.value[gone] = -np.inf
        fresh = self._compared(kept)
        self.ratios[:kept, kept], self.ratios[kept, kept + 1 :] = fresh[:kept], fresh[kept + 1 :]
        for place in np.flatnonzero(self._stale(kept, gone)).tolist():
            self._look(place)

    def _stale(self, kept: int, gone: int) -> NDArray[np.bool_]:
        """Places whose best partner may be another one now."""
        behind = self.ratios[:, kept]
        better = (behind > self.value) | ((behind == self.value) & (self.partner > kept))
        stale = (self.partner == gone) | (self.partner == kept) | better
        stale[kept] = True
        return np.asarray(stale & self.alive)

    def _look(self, place: int) -> None:
        self.partner[place] = self.ratios[place].argmax()
        self.value[place] = self.ratios[place, self.partner[place]]

    def _compared(self, place: int) -> NDArray[np.float64]:
        left = torch.from_numpy(np.flatnonzero(self.alive))
        others = Rows(left, self.counts[left], self.coordinates[left])
        this = others[left == place]
        fresh = np.full(len(self.alive), -np.inf)
        fresh[self.alive] = self.evidence.same(this, others)[0].cpu().numpy()
        mine = self.names[place]
        if mine != NAMELESS:
            fresh[(self.names != NAMELESS) & (self.names != mine)] = -np.inf
        return fresh
