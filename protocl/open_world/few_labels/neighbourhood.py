"""Labels of queries that agree with their neighbours: the bound updates of SLK.

Source: Ziko et al., "Transductive few-shot learning: clustering is all you need?", 2021
(arXiv 2106.09516), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 1e-20


def nearest_others(points: Tensor, number: int) -> Tensor:
    """Rows ``(M, n)`` of the nearest other points of each, at most ``number``.

    Args:
        points: ``(M, W)``.
        number: how many.
    """
    number = max(0, min(number, len(points) - 1))
    gaps = torch.cdist(points, points)
    gaps.fill_diagonal_(torch.inf)
    return gaps.topk(number, largest=False).indices


def bandwidth(points: Tensor, neighbours: Tensor) -> float:
    """``sigma^2``: squared distance to the neighbours, summed, over five times the points.

    The five is of the authors' code, whatever the number of neighbours.
    """
    gaps = points[:, None] - points[neighbours]
    return float(gaps.square().sum()) / (5 * max(len(points), 1))


def agree(
    costs: Tensor,
    neighbours: Tensor,
    weight: float,
    fixed: Tensor,
    *,
    clamp: bool = True,
    rounds: int = 600,
    tolerance: float = 1e-7,
) -> tuple[Tensor, float]:
    """Soft labels that are cheap and like those of the neighbours.

    ``Y <- softmax(-a + w sum of the neighbours' Y)``, until the bound
    ``sum Y log Y + Y a - w Y (sum of the neighbours' Y)`` changes by less than ``tolerance`` of it.

    Args:
        costs: ``(M, C)``, ``a``.
        neighbours: ``(M, n)`` rows of each point's neighbours.
        weight: ``w``.
        fixed: ``(M, C)`` one-hot labels of points that have one, zeros of others.
        clamp: keep these labels; else they only begin with them, as in the authors' code, where
            they drift.
        rounds, tolerance: when to stop.

    Returns:
        ``Y`` ``(M, C)`` and the last bound.
    """
    given = fixed.sum(1, keepdim=True) > 0
    soft = torch.where(given, fixed, (-costs).softmax(1))
    bound = torch.inf
    for _ in range(rounds):
        soft = (weight * _around(soft, neighbours) - costs).softmax(1)
        if clamp:
            soft = torch.where(given, fixed, soft)
        before, bound = bound, _bound(soft, costs, neighbours, weight)
        if abs(bound - before) <= tolerance * abs(before) < torch.inf:
            break
    return soft, bound


def _around(soft: Tensor, neighbours: Tensor) -> Tensor:
    return soft[neighbours].sum(1)


def _bound(soft: Tensor, costs: Tensor, neighbours: Tensor, weight: float) -> float:
    terms = soft.clamp(min=_LEAST).log() + costs - weight * _around(soft, neighbours)
    return float((soft * terms).sum())
