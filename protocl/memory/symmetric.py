"""Symmetric matrices: products of which one triangle is computed, triangles that stand for both."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 128
"""Least width of the blocks of a symmetric product, of which one triangle is computed."""


def triangle_size(width: int) -> int:
    """Entries of the upper triangle of a matrix ``(W, W)``, its diagonal included."""
    return width * (width + 1) // 2


def diagonal_places(width: int) -> Tensor:
    """``(W,)`` where the diagonal of a matrix lies in its upper triangle."""
    before = torch.arange(width)
    return before * width - before * (before - 1) // 2


def pack_triangles(matrices: Tensor) -> Tensor:
    """Upper triangles ``(..., W (W + 1) / 2)``, row by row, of symmetric ``(..., W, W)``."""
    width = matrices.shape[-1]
    rows, columns = torch.triu_indices(width, width, device=matrices.device)
    return matrices.flatten(-2).index_select(-1, rows * width + columns)


def unpack_triangles(triangles: Tensor, width: int) -> Tensor:
    """Symmetric matrices ``(..., W, W)`` of their upper triangles ``(..., W (W + 1) / 2)``."""
    whole = triangles.new_empty(*triangles.shape[:-1], width, width)
    rows, columns = torch.triu_indices(width, width, device=triangles.device)
    whole[..., rows, columns] = triangles
    whole[..., columns, rows] = triangles
    return whole


def add_upper_products_(totals: Tensor, values: Tensor) -> None:
    """Add the upper blocks of ``values^T values`` to ``totals``; :func:`mirror_` gives the rest.

    Args:
        totals: ``(G, W, W)``.
        values: ``(G, L, W)``.
    """
    width = values.shape[2]
    block = max(_BLOCK, -(-width // 8))
    for start in range(0, width, block):
        left, right = values[:, :, start : start + block], values[:, :, start:]
        for total, a, b in zip(totals[:, start : start + block, start:], left, right, strict=True):
            total.addmm_(a.T, b)


def mirror_(totals: Tensor) -> None:
    """Copy the upper blocks of symmetric ``(G, W, W)`` to the lower ones."""
    width = totals.shape[2]
    block = max(_BLOCK, -(-width // 8))
    for start in range(block, width, block):
        totals[:, start : start + block, :start] = totals[:, :start, start : start + block].mT
