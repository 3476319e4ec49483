"""Choosing exemplars near which all samples of their class lie."""

from __future__ import annotations

import torch
from torch import Tensor

_CANDIDATES = 32
"""Samples whose gain is computed at once; of more, most would be computed in vain."""


@torch.no_grad()
def medoids(features: Tensor, count: int) -> Tensor:
    """Choose samples that lie near all others: rows ``(min(count, N),)``, the best first.

    The first is nearest to the mean, and the next one always that which takes most off the sum of
    all samples' squared distances to the nearest of those chosen (greedy k-medoids). What it takes
    off is at least 63 % of what the best choice of as many could. No random number is drawn.

    A gain only falls while others are chosen, so most of those computed before are bounds that
    need not be looked at again (lazy evaluation): there is no ``(N, N)`` table.

    Args:
        features: ``(N, ...)`` of one class, flattened: of images the pixels will do.
        count: how many to choose.

    Source: Kaufman & Rousseeuw 1990, "Finding groups in data", chapter 2 (BUILD); Nemhauser et al.
    1978 for the 63 %; Minoux 1978 for lazy evaluation.
    """
    x = features.flatten(1)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = x - x.mean(0)  # far from 0 the squares below would cancel
    squares = x.square().sum(1)
    chosen = torch.zeros(min(count, len(x)), dtype=torch.int64, device=x.device)
    nearest, gains = torch.full_like(squares, torch.inf), torch.full_like(squares, torch.inf)
    for j in range(len(chosen)):
        best = _best(x, squares, nearest, gains) if j else squares.argmin(0, keepdim=True)
        chosen[j : j + 1] = best
        gains[best] = -torch.inf
        distances = squares + squares[best] - 2 * (x @ x[best].squeeze(0))
        nearest = torch.minimum(nearest, distances.clamp(min=0))
    return chosen


def _best(x: Tensor, squares: Tensor, nearest: Tensor, gains: Tensor) -> Tensor:
    """Row ``(1,)`` of the largest gain; ``gains``, which are bounds, are brought up to date."""
    outdated = torch.ones_like(gains, dtype=torch.bool)
    while True:
        known = gains.masked_fill(outdated, -torch.inf)
        bounds, rows = gains.masked_fill(~outdated, -torch.inf).topk(min(_CANDIDATES, len(gains)))
        best = known.argmax(0, keepdim=True)
        if not bounds[:1] > known[best]:  # all that the host has to know
            return best
        # |x_i - x_j|^2 less than what i has: the rest of the square is the same for all j.
        saved = torch.addmm(nearest - squares, x[rows], x.T, alpha=2) - squares[rows, None]
        fresh = saved.clamp_(min=0).sum(1)
        gains[rows] = torch.where(bounds > -torch.inf, fresh, gains[rows])  # chosen rows stay out
        outdated[rows] = False
