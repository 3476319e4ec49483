"""Rotated images as further classes: label augmentation of PASS and NAPA-VQ.

Every image is seen in four orientations, and a class in another orientation is another class. That
makes features of one session richer than its few classes demand (Lee et al., ICML 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor

ROTATIONS = 4


def rotate(images: Tensor, quarter_turns: int) -> Tensor:
    """Images ``(B, C, S, S)`` turned counter-clockwise by ``quarter_turns`` times 90 degrees.

    Raises:
        ValueError: they are not square images, which a quarter turn would not leave in shape.
    """
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(
            f"inputs of shape {tuple(images.shape)} cannot be rotated: expected square images "
            "(B, C, S, S); resize them, or choose a strategy without rotations"
        )
    return torch.rot90(images, quarter_turns, (2, 3))


def rotated(images: Tensor) -> Tensor:
    """All four orientations ``(4 B, C, S, S)``; the first ``B`` are the images as they are.

    Raises:
        ValueError: as :func:`rotate`.
    """
    return torch.cat([rotate(images, k) for k in range(ROTATIONS)])


def rotated_rows(rows: Tensor) -> Tensor:
    """Rows ``4 r + k`` of orientation ``k``, ``(4 B,)``, for :func:`rotated` of rows ``(B,)``."""
    return (ROTATIONS * rows + torch.arange(ROTATIONS, device=rows.device)[:, None]).flatten()
