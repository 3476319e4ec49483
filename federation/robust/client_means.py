"""The class means of many clients side by side, and robust centres of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory

_ITERATIONS = 200
_TOLERANCE = 1e-7
_SMOOTHING = 1e-6
_TINY = 1e-150
_TYPICAL_PAIR = 0.4

_PASSES = 3
"""Medians of :func:`consistency`: each listens to those who scored well against the one before."""


@dataclass(frozen=True)
class ClientMeans:
    """Means and counts of ``K`` clients over the ``C`` classes that any of them holds.

    Attributes:
        classes: ``(C,)`` class ids, ascending.
        counts: ``(K, C)`` float64, 0 where a client lacks a class.
        means: ``(K, C, W)`` float64, 0 where a client lacks a class.
    """

    classes: Tensor
    counts: Tensor
    means: Tensor

    @classmethod
    def of(cls, memories: Sequence[PrototypeMemory]) -> ClientMeans:
        """Side by side, the means of memories that fit together.

        Raises:
            ValueError, FingerprintError: they do not, or there are none.
        """
        if not memories:
            raise ValueError("no memories: expected those of one client or more")
        first = memories[0]
        for other in memories[1:]:
            first.require_compatible(other)
        classes = torch.unique(torch.cat([memory.classes for memory in memories]))
        counts = torch.zeros(len(memories), len(classes), dtype=torch.float64)
        means = torch.zeros(*counts.shape, first.width, dtype=torch.float64)
        counts, means = counts.to(first.device), means.to(first.device)
        for client, memory in enumerate(memories):
            rows = torch.searchsorted(classes, memory.classes)
            counts[client, rows] = memory.counts.to(torch.float64)
            means[client, rows] = memory.means
        return cls(classes, counts, means)

    @property
    def held(self) -> Tensor:
        """``(K, C)`` whether a client holds a class."""
        return self.counts > 0


def weighted_mean(means: Tensor, weights: Tensor) -> Tensor:
    """Mean over clients ``(C, W)`` of ``means`` ``(K, C, W)`` with ``weights`` ``(K, C)``."""
    total = weights.sum(0).clamp_min(_TINY)
    return torch.einsum("kcw,kc->cw", means, weights) / total[:, None]


def trimmed_mean(means: Tensor, weights: Tensor, trim: float) -> Tensor:
    """Mean ``(C, W)`` without the outer shares of the weight, in each class and dimension.

    Yin et al., "Byzantine-robust distributed learning" (ICML 2018), definition 2, for weights that
    need not be equal: of the sorted values, those between the ``trim`` and ``1 - trim`` quantiles.

    Args:
        means: ``(K, C, W)``.
        weights: ``(K, C)``, 0 for clients that do not count.
        trim: share taken off at either end, from 0 to below 0.5.
    """
    values, order = means.sort(dim=0)
    sorted_weights = weights[:, :, None].expand_as(means).gather(0, order)
    above = sorted_weights.cumsum(0)
    total = above[-1:]
    low, high = trim * total, (1 - trim) * total
    kept = above.clamp(low, high) - (above - sorted_weights).clamp(low, high)
    return (values * kept).sum(0) / kept.sum(0).clamp_min(_TINY)


def geometric_median(means: Tensor, weights: Tensor) -> Tensor:
    """Point ``(C, W)`` with the least weighted sum of distances to the clients, in each class.

    Weiszfeld's iteration on all classes at once, smoothed so that it cannot stop at a client's
    own point (Pillutla et al., "Robust aggregation for federated learning", 2022, algorithm 2). It
    lies near the honest clients whatever less than half of the weight says.

    Args:
        means: ``(K, C, W)``.
        weights: ``(K, C)``, 0 for clients that do not count.
    """
    # From a start far away, such as a mean that one client moved, it would take much longer.
    centre = trimmed_mean(means, weights, 0.49)
    # The unit must be robust as well: a multiple of the largest distance is the attacker's.
    distances = (means - centre).norm(dim=2).masked_fill(weights <= 0, torch.nan)
    typical = distances.nanmedian(dim=0).values.nan_to_num()  # (C,)
    smallest = (_SMOOTHING * typical).clamp_min(_TINY)
    for _ in range(_ITERATIONS):
        distances = torch.maximum((means - centre).norm(dim=2), smallest)
        moved = weighted_mean(means, weights / distances)
        shift = (moved - centre).norm(dim=1)
        centre = moved
        if bool((shift <= _TOLERANCE * typical).all()):
            break
    return centre


def consistency(clients: ClientMeans, weights: Tensor) -> Tensor:
    """How well each client's means agree with the others', ``(K,)`` in (0, 1].

    In each class the clients' distances to their geometric median are compared with the median
    distance: a client scores 1 where it is no farther away than that, and the ratio of the two
    where it is. The score of a client is the mean over its classes, weighted by its counts. Then
    the median is taken again, with the scores for weights. Classes of one or two clients say
    nothing about either, and score 1.

    Args:
        clients: their means.
        weights: ``(K, C)`` say in the median.
    """
    held = clients.held
    scores = torch.ones(len(held), dtype=torch.float64, device=held.device)
    for _ in range(_PASSES):
        centre = geometric_median(clients.means, weights * scores[:, None])
        distances = (clients.means - centre).norm(dim=2)
        typical = distances.masked_fill(~held, torch.nan).nanmedian(dim=0).values
        ratios = torch.where(distances > typical, typical / distances, 1.0)
        ratios = torch.where(held.sum(0) > 2, ratios, 1.0)
        scores = (ratios * clients.counts).sum(1) / clients.counts.sum(1).clamp_min(1.0)
    return scores


def near_copies(clients: ClientMeans, nearness: float) -> Tensor:
    """How many clients, itself included, send nearly the same as each client, ``(K,)``.

    Honest clients have different samples, hence means at typical distances; Sybils of one
    attacker repeat each other. Two clients are near copies if the distance of their means, over
    the classes that both hold, is less than ``nearness`` times a typical one.

    Typical is the 40 % quantile over all pairs. It is a distance between honest clients while
    fewer than 63 % of the clients are copies of each other (they make less than 40 % of the pairs,
    all near) and fewer than 37 % lie far off (the others make more than 40 %).
    """
    held = clients.held.to(torch.float64)
    common = held @ held.T
    distances = torch.zeros_like(common)
    for c in range(len(clients.classes)):
        both = held[:, c, None] * held[None, :, c]
        distances += both * torch.cdist(clients.means[:, c], clients.means[:, c])
    distances = (distances / common).masked_fill(common == 0, torch.inf)
    pairs = distances[~torch.eye(len(held), dtype=torch.bool, device=held.device)]
    finite = pairs[torch.isfinite(pairs)]
    if not len(finite):
        return torch.ones(len(held), device=held.device)
    near = distances <= nearness * finite.quantile(_TYPICAL_PAIR)
    return near.fill_diagonal_(True).sum(1)
