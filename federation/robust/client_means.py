"""Robust centres of the class means of many clients, and how clients agree with them."""

from __future__ import annotations

import torch
from torch import Tensor

from protocl.federation.robust.side_by_side import ClientMeans, SideBySide

_ITERATIONS = 200
_TOLERANCE = 1e-7
_SMOOTHING = 1e-6
_TINY = 1e-150
_TYPICAL_PAIR = 0.4

_PASSES = 3
"""Medians of :func:`consistency`: each listens to those who scored well against the one before."""


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


def consistency(clients: SideBySide, votes: Tensor) -> Tensor:
    """How well each client's means agree with the others', ``(K,)`` in (0, 1].

    In each class the clients' distances to their geometric median are compared with the median
    distance: a client scores 1 where it is no farther away than that, and the ratio of the two
    where it is. The score of a client is the mean over its classes, weighted by its counts. Then
    the median is taken again, with the scores for weights. Classes of one or two clients say
    nothing about either, and score 1.

    Args:
        clients: their means.
        votes: ``(K,)`` say in the median.
    """
    scores = torch.ones_like(votes)
    for _ in range(_PASSES):
        agreed, samples = torch.zeros_like(votes), torch.zeros_like(votes)
        for block in clients:
            ratios = _ratios(block, (votes * scores)[block.members])
            agreed[block.members] += (ratios * block.counts).sum(1)
            samples[block.members] += block.counts.sum(1)
        scores = agreed / samples.clamp_min(1.0)
    return scores


def _ratios(block: ClientMeans, votes: Tensor) -> Tensor:
    """Typical distance over own one, at most 1, ``(M, C)``."""
    held = block.held
    if block.most_holders <= 2:
        return torch.ones_like(block.counts)
    centre = geometric_median(block.means, votes[:, None] * held)
    distances = (block.means - centre).norm(dim=2)
    typical = distances.masked_fill(~held, torch.nan).nanmedian(dim=0).values
    ratios = torch.where(distances > typical, typical / distances, 1.0)
    return torch.where(held.sum(0) > 2, ratios, 1.0)


def near_copies(clients: SideBySide, nearness: float) -> Tensor:
    """How many clients, itself included, send nearly the same as each client, ``(K,)``.

    Honest clients have different samples, hence means at typical distances; Sybils of one
    attacker repeat each other. Two clients are near copies if the distance of their means, over
    the classes that both hold, is less than ``nearness`` times a typical one.

    Typical is the 40 % quantile over all pairs. It is a distance between honest clients while
    fewer than 63 % of the clients are copies of each other (they make less than 40 % of the pairs,
    all near) and fewer than 37 % lie far off (the others make more than 40 %).
    """
    device = clients.like.device
    common = torch.zeros(len(clients), len(clients), dtype=torch.float64, device=device)
    distances = torch.zeros_like(common)
    for block in clients:
        held, pairs = block.held.to(torch.float64), (block.members[:, None], block.members)
        common[pairs] += held @ held.T
        if block.most_holders > 1:
            distances[pairs] += _distances(block)
    distances = (distances / common).masked_fill(common == 0, torch.inf)
    apart = distances[~torch.eye(len(clients), dtype=torch.bool, device=device)]
    finite = apart[torch.isfinite(apart)]
    if not len(finite):
        return torch.ones(len(clients), device=device)
    near = distances <= nearness * finite.quantile(_TYPICAL_PAIR)
    return near.fill_diagonal_(True).sum(1)


def _distances(block: ClientMeans) -> Tensor:
    """Between each two clients, ``(M, M)``, the sum over the classes that both hold."""
    held = block.held.to(torch.float64)
    total = torch.zeros(len(held), len(held), dtype=torch.float64, device=held.device)
    for c in range(len(block.classes)):
        both = held[:, c, None] * held[None, :, c]
        total += both * torch.cdist(block.means[:, c], block.means[:, c])
    return total
