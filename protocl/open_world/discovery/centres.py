"""Centres of categories, and the one step of k-means on them: sums of the nearest samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.memory.feature_maps import unit
from protocl.memory.summation import EXACT_INTEGER_BITS, quantise

Uniform = Callable[[], float]
"""Draws a number from [0, 1)."""

_PIECE = 1 << 20
"""Distances that are held at once."""

_FAR = 1e4
"""Square of an offset, in units of the spread of centres, from which on it is taken out."""


@dataclass(frozen=True, eq=False)
class Centres:
    """Points that stand for categories.

    In fixed point, centres are rounded to whole steps like samples. Distances are whole numbers
    then, and exact: who is nearest depends on neither machine nor order.

    Attributes:
        ids: ``(K,)`` int64, ascending.
        points: ``(K, W)`` float64.
        step: of fixed point; None in floating point.
        spherical: whether they are kept at unit length: of samples of unit length the nearest is
            the one of largest cosine, and a centre of few or scattered samples is not favoured
            for its lying near the origin.
    """

    ids: Tensor
    points: Tensor
    step: float | None = None
    spherical: bool = False

    @classmethod
    def sorted(
        cls, ids: Tensor, points: Tensor, step: float | None = None, *, spherical: bool = False
    ) -> Centres:
        """Centres whose ids may come in any order."""
        order = ids.argsort()
        points = points[order].to(torch.float64)
        return cls(ids[order], unit(points) if spherical else points, step, spherical)

    def nearest(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the nearest centres, the first among equal ones, and squared distances.

        Args:
            samples: ``(N, W)``, of any precision, in which distances are computed; those of half
                precision in single.

        Returns:
            ``(N,)`` int64, and ``(N,)``: int64 squared steps in fixed point.

        Raises:
            OverflowError: distances are not exact in fixed point; use a larger step.
        """
        points, samples = self._whole(samples)
        squares = points.square().sum(1)
        rows, gaps = [], []
        for part in samples.split(max(1, _PIECE // max(len(points), 1))):
            gap, row = torch.addmm(squares, part, points.T, alpha=-2).min(1)
            gaps.append(gap + part.square().sum(1))
            rows.append(row)
        distances = torch.cat(gaps).clamp(min=0) if gaps else samples.new_zeros(0)
        found = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)
        return found, distances if self.step is None else distances.to(torch.int64)

    def _whole(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Centres and samples in one unit and precision."""
        if self.step is None:
            return self._near_origin(at_least_single(samples))
        points, samples = quantise(self.points, self.step), quantise(samples, self.step)
        largest = max((float(x.abs().max()) for x in (points, samples) if x.numel()), default=0)
        if 4 * largest**2 * samples.shape[1] > 2**EXACT_INTEGER_BITS:
            raise OverflowError(
                f"distances of {samples.shape[1]} features of magnitude {largest * self.step:g} "
                f"are not exact in fixed point with step {self.step:g}; use a larger step"
            )
        return points, samples

    def _near_origin(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Centres and samples, less an offset that would leave few digits to distances."""
        middle = self.points.mean(0)
        spread = (self.points - middle).square().sum(1).mean()
        if not len(self.points) or middle.square().sum() <= _FAR * spread:
            return self.points.to(samples.dtype), samples
        middle = middle.to(samples.dtype)
        return (self.points - middle).to(samples.dtype), samples - middle

    def share(self, samples: Tensor) -> Share:
        """What the holder of ``samples`` ``(N, W)`` gives to a step."""
        rows, distances = self.nearest(samples)
        memory = PrototypeMemory(
            samples.shape[1], exact=self.step is not None, step=self.step or 2.0**-16
        ).update(samples, self.ids[rows])
        total = distances.sum(dtype=torch.int64 if self.step is not None else torch.float64)
        return Share(memory, total.item())

    def moved(self, total: PrototypeMemory) -> Centres:
        """The means of ``total``; a centre without samples stays where it is."""
        points = self.points.clone()
        means = unit(total.means) if self.spherical else total.means
        points[torch.searchsorted(self.ids, total.classes)] = means
        return replace(self, points=points)


@dataclass(frozen=True, eq=False)
class Share:
    """Samples by their nearest centre. Shares of several holders add up, in any order.

    Attributes:
        memory: counts and sums, of level ``mean``, by the ids of the centres.
        squares: sum of squared distances to the nearest centre; whole squared steps in fixed point.
    """

    memory: PrototypeMemory
    squares: float

    def __add__(self, other: Share) -> Share:
        return Share(self.memory + other.memory, self.squares + other.squares)

    def __radd__(self, other: int) -> Self:
        """``sum(shares)``, which begins with 0."""
        return self if other == 0 else NotImplemented


def at_least_single(samples: Tensor) -> Tensor:
    """Samples whose squares neither overflow nor lose all digits: half precision as single."""
    return samples.to(torch.promote_types(samples.dtype, torch.float32))


def plus_plus(
    points: Tensor, number: int, uniform: Uniform, centres: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Further centres ``(number, W)``, drawn by squared distance to the nearest one so far.

    Source: Arthur & Vassilvitskii, "k-means++", SODA 2007. Points whose squared distances are 0
    throughout are drawn by weight alone.

    Args:
        points: ``(N, W)`` to draw from.
        number: how many.
        uniform: draws.
        centres: ``(C, W)`` those so far; none for a first one that is drawn by weight.
        weights: ``(N,)``, such as the number of samples of which each point is the mean.

    Raises:
        ValueError: there are no points to draw from.
    """
    if number and not len(points):
        raise ValueError(f"{number} centres are to be drawn from no samples")
    gaps = points.new_full((len(points),), torch.inf)
    if len(centres):
        gaps = Centres(torch.arange(len(centres)), centres).nearest(points)[1]
    drawn = []
    for _ in range(number):
        row = _draw(gaps, weights, uniform())
        drawn.append(points[row])
        gaps = torch.minimum(gaps, (points - points[row]).square().sum(1))
    return torch.stack(drawn) if drawn else points[:0]


def _draw(gaps: Tensor, weights: Tensor | None, share: float) -> int:
    """The first row at which the cumulated share reaches ``share``, the last where none does."""
    usual = torch.ones_like(gaps, dtype=torch.float64) if weights is None else weights.double()
    masses = gaps.double() * usual
    total = float(masses.sum())
    if not 0 < total < torch.inf:
        masses, total = usual, float(usual.sum())
    places = torch.searchsorted(masses.cumsum(0) / total, share)
    return min(int(places), len(gaps) - 1)
