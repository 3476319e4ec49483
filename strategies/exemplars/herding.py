"""Choosing exemplars whose mean stays near that of their class."""

from __future__ import annotations

import torch
from torch import Tensor


def herd(features: Tensor, count: int) -> Tensor:
    """Choose samples whose mean is near that of all: rows ``(min(count, N),)``, the best first.

    The next one is always that which brings the mean of those chosen nearest to the mean of all:
    ``argmin_i |m - (x_i + sum of chosen) / j|`` over those not yet chosen.

    Args:
        features: ``(N, D)`` of one class, as they enter the mean (iCaRL: of unit length).
        count: how many to choose.

    Source: Rebuffi et al. 2017 (iCaRL), algorithm 4.
    """
    x = features.to(torch.float64)
    mean = x.mean(0)
    squares, towards_mean = x.square().sum(1), x @ mean
    with_chosen = torch.zeros_like(squares)
    chosen = torch.zeros(min(count, len(x)), dtype=torch.int64, device=x.device)
    taken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for j in range(len(chosen)):
        # |j m - s - x_i|^2 without what is the same for all i.
        cost = squares - 2 * ((j + 1) * towards_mean - with_chosen)
        # Of shape (1,): as a number it would have to come to the host before it can be an index.
        best = cost.masked_fill(taken, float("inf")).argmin(0, keepdim=True)
        chosen[j : j + 1] = best
        taken[best] = True
        with_chosen += x @ x[best].squeeze(0)
    return chosen
