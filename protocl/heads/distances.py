"""Squared distances between many points."""

from __future__ import annotations

import torch
from torch import Tensor


def write_negative_distances(queries: Tensor, points: Tensor, squares: Tensor, out: Tensor) -> None:
    """Write ``-|q - p|^2`` to ``out`` ``(N, C)`` by one matrix product.

    Args:
        queries: ``(N, W)``.
        points: ``(C, W)``; the nearer to the origin, the fewer digits are lost.
        squares: ``(C,)``, their squared norms.
        out: ``(N, C)``.
    """
    torch.addmm(squares, queries, points.T, beta=-1, alpha=2, out=out)
    out.sub_(queries.square().sum(1, keepdim=True))
