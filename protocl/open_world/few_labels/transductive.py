"""Transductive inference: the queries of a few-shot task are labelled together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from protocl.config.validation import require_choice
from protocl.memory import PrototypeMemory
from protocl.memory.feature_maps import FeatureMap
from protocl.memory.rows import find_rows
from protocl.open_world.few_labels.neighbourhood import agree, bandwidth, nearest_others


class Support(NamedTuple):
    """Labelled samples that are at hand: ``(N, D)`` features and ``(N,)`` class ids."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Transduced:
    """What queries were found to be.

    Attributes:
        labels: ``(Q,)`` class ids.
        probabilities: ``(Q, C)`` soft labels, columns as ``classes``.
        classes: ``(C,)``.
        centres: ``(C, W)`` float64.
        memory: counts and sums of the queries by label, of level ``mean``: all that has to leave a
            client whose queries they are. Where queries were shifted, it holds them shifted.
    """

    labels: Tensor
    probabilities: Tensor
    classes: Tensor
    centres: Tensor
    memory: PrototypeMemory


class SLK:
    """Laplacian clustering of queries around the classes of a memory.

    Costs ``|x - c_k|^2`` (``"kmeans"``) or ``-exp(-|x - c_k|^2 / 2 sigma^2)`` (``"mean_shift"``)
    are weighed against disagreement with the nearest other points. Without neighbours
    (``weight=0``) and with k-means it is :class:`.SemiSupervisedKMeans` of the known classes, so
    exact from sums; neighbours are the client's own affair.

    Source: Ziko et al. 2021 (:mod:`.neighbourhood`). Their code fixes the support's labels at the
    start only, which ``clamp=False`` does as well.

    Args:
        weight: of the neighbours, ``lambda``.
        neighbours: as the authors count them: a point itself is one.
        unary: see above; the second needs support samples.
        clamp: keep the support's labels; without it support samples are needed.
        shift: move the queries so that their mean is that of the support.
        rounds, tolerance: of the outer loop, by relative change of the energy.

    Example:
        >>> known = PrototypeMemory(1).update(torch.tensor([[0.0], [4.0]]), torch.tensor([3, 7]))
        >>> queries = torch.tensor([[-0.5], [0.4], [1.9], [5.0]])
        >>> SLK(weight=0.5, neighbours=2, shift=False).fit(known, queries).labels.tolist()
        [3, 3, 3, 7]
    """

    def __init__(
        self,
        weight: float = 0.7,
        neighbours: int = 3,
        *,
        unary: Literal["kmeans", "mean_shift"] = "kmeans",
        clamp: bool = True,
        shift: bool = True,
        rounds: int = 100,
        tolerance: float = 1e-4,
    ) -> None:
        require_choice("unary", unary, ("kmeans", "mean_shift"))
        if not 0 <= weight < torch.inf:
            raise ValueError(f"weight={weight}: expected a number >= 0")
        if neighbours < 1:
            raise ValueError(f"neighbours={neighbours}: expected 1 or more, a point itself is one")
        self.weight, self.neighbours, self.unary = weight, neighbours, unary
        self.clamp, self.shift = clamp, shift
        self.rounds, self.tolerance = rounds, tolerance

    @torch.no_grad()
    def fit(
        self, known: PrototypeMemory, queries: Tensor, support: Support | None = None
    ) -> Transduced:
        """Label queries.

        Args:
            known: statistics of the support.
            queries: ``(Q, D)``.
            support: the samples behind ``known``, if they are at hand: they are neighbours too.

        Raises:
            ValueError: the memory is empty, or support samples are needed.
        """
        if not len(known):
            raise ValueError("the memory is empty: expected the support's classes")
        if support is None and (self.unary == "mean_shift" or not self.clamp):
            asked = "unary='mean_shift'" if self.unary == "mean_shift" else "clamp=False"
            raise ValueError(f"{asked} needs the samples of the support: give support=")
        return _Fit(self, known, queries, support).run()


class _Fit:
    """The state of one inference; points are the support samples that are given, then queries."""

    def __init__(
        self, settings: SLK, known: PrototypeMemory, queries: Tensor, support: Support | None
    ) -> None:
        self.settings = settings
        self.classes, self.width = known.classes, known.width
        self.centres = known.means
        asked = _mapped(known.feature_map, queries)
        if settings.shift and len(asked):
            asked = asked + (known.sums.sum(0) / known.total - asked.mean(0))
        own = asked[:0] if support is None else _mapped(known.feature_map, support.features)
        labels = self.classes[:0] if support is None else support.labels
        self.points = torch.cat([own, asked])
        self.held = len(own)
        self.fixed = torch.zeros(len(self.points), len(known), dtype=torch.float64)
        rows = find_rows(self.classes, labels)
        self.fixed[: self.held] = functional.one_hot(rows, len(known)).double()
        # Support that is not at hand counts through its sums.
        self.counts = known.counts * (self.held == 0)
        self.sums = known.sums * (self.held == 0)

    def run(self) -> Transduced:
        settings = self.settings
        near = nearest_others(self.points, settings.neighbours - 1)
        spread = bandwidth(self.points, near)
        soft = torch.where(self.fixed.sum(1, keepdim=True) > 0, self.fixed, -self._gaps())
        rows, energy = soft.argmax(1), torch.inf
        self._move(rows, spread)
        for _ in range(settings.rounds):
            costs = self._costs(spread)
            soft, _ = agree(costs, near, settings.weight, self.fixed, clamp=settings.clamp)
            rows = soft.argmax(1)
            before, energy = energy, float(costs.gather(1, rows[:, None]).sum())
            self._move(rows, spread)
            if abs(energy - before) <= settings.tolerance * abs(before) < torch.inf:
                break
        return self._found(soft[self.held :], rows[self.held :])

    def _gaps(self) -> Tensor:
        return torch.cdist(self.points, self.centres).square()

    def _costs(self, spread: float) -> Tensor:
        gaps = self._gaps()
        return gaps if self.settings.unary == "kmeans" else -(-gaps / (2 * spread)).exp()

    def _move(self, rows: Tensor, spread: float) -> None:
        """Centres to the means of their points, or to a mode; without points they stay."""
        if self.settings.unary == "kmeans":
            counts = self.counts + torch.bincount(rows, minlength=len(self.classes))
            sums = self.sums.index_add(0, rows, self.points)
            moved = sums / counts.clamp(min=1)[:, None]
            self.centres = torch.where(counts[:, None] > 0, moved, self.centres)
            return
        for row in rows.unique().tolist():
            self.centres[row] = _mode(self.points[rows == row], self.centres[row], spread)

    def _found(self, soft: Tensor, rows: Tensor) -> Transduced:
        labels, queries = self.classes[rows], self.points[self.held :]
        memory = PrototypeMemory(self.width).update(queries, labels)
        return Transduced(labels, soft, self.classes, self.centres, memory)


def _mapped(map: FeatureMap, features: Tensor) -> Tensor:
    return map(features.double())


def _mode(points: Tensor, start: Tensor, spread: float, tolerance: float = 1e-6) -> Tensor:
    """The mode of a Gaussian kernel density that mean shifts lead to from ``start`` ``(W,)``."""
    for _ in range(1000):
        weights = (-(points - start).square().sum(1) / (2 * spread)).softmax(0)
        moved = weights @ points
        if float((moved - start).abs().max()) < tolerance:
            return moved
        start = moved
    return start
