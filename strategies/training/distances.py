"""Distances between features and prototypes that are safe to train through."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST_SQUARE = 1e-12
"""Below it the gradient of a distance is 0, as its direction is lost to rounding."""


def squared_distances(features: Tensor, prototypes: Tensor) -> Tensor:
    """``|z_b - c_n|^2`` for every pair, ``(B, N)``, none negative.

    One matrix product, in float64: in float32 its terms cancel, and features of norm 68 next to
    their prototype come out wrong by some percent. The result is float32, or wider if an input is.

    Args:
        features: ``(B, D)`` of any floating point type; safe under autocast.
        prototypes: ``(N, D)``.
    """
    wide = torch.promote_types(torch.promote_types(features.dtype, prototypes.dtype), torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        z, c = features.double(), prototypes.double()
        squares = z.square().sum(1, keepdim=True) + c.square().sum(1) - 2 * z @ c.T
        return squares.clamp(min=0).to(wide)


def distances(squares: Tensor) -> Tensor:
    """Square roots whose gradient is 0, not infinite, where features meet a prototype.

    Args:
        squares: squared distances of any shape, float32 or wider.
    """
    return squares.clamp(min=_SMALLEST_SQUARE).sqrt()
