"""Symmetric matrices: products of which one triangle is computed, triangles that stand for both."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

import torch
from torch import Tensor

_BLOCK = 128
"""Least width of the blocks of a symmetric product, of which one triangle is computed."""

GATHERED = 128
"""Largest width of matrices that are gathered from their triangles by one index."""

_ASYMMETRY = 1e-9
"""Share of the largest entry by which rounding may tell a matrix from its transpose."""


def triangle_size(width: int) -> int:
    """Entries of the upper triangle of a matrix ``(W, W)``, its diagonal included."""
    return width * (width + 1) // 2


@lru_cache(maxsize=16)
def diagonal_places(width: int) -> Tensor:
    """``(W,)`` where the diagonal of a matrix lies in its upper triangle; not to be changed."""
    before = torch.arange(width)
    return before * width - before * (before - 1) // 2


def require_symmetric(name: str, matrices: Tensor) -> None:
    """Refuse matrices ``(..., W, W)`` that differ from their transposes by more than rounding.

    Raises:
        ValueError: they do.
    """
    if not matrices.numel():
        return
    each = matrices.reshape(-1, *matrices.shape[-2:])
    gap = max(float((matrix - matrix.mT).abs().max()) for matrix in each)
    if gap > _ASYMMETRY * max(abs(float(extreme)) for extreme in matrices.aminmax()):
        raise ValueError(f"{name} is not symmetric: entries differ by {gap:.3g}")


def pack_triangles(matrices: Tensor) -> Tensor:
    """Upper triangles ``(..., W (W + 1) / 2)``, row by row, of symmetric ``(..., W, W)``."""
    width = matrices.shape[-1]
    if matrices.device.type != "cpu":
        rows, columns = torch.triu_indices(width, width, device=matrices.device)
        return matrices.flatten(-2).index_select(-1, rows * width + columns)
    packed = matrices.new_empty(*matrices.shape[:-2], triangle_size(width))
    # An index would take more memory than the matrix, and far longer to make than to use.
    whole, flat = matrices.detach().numpy(), packed.numpy()
    for row, part in _rows(width):
        flat[..., part] = whole[..., row, row:]
    return packed


def unpack_triangles(triangles: Tensor, width: int) -> Tensor:
    """Symmetric matrices ``(..., W, W)`` of their upper triangles ``(..., W (W + 1) / 2)``."""
    if width <= GATHERED and triangles.device.type == "cpu":
        chosen = triangles.index_select(-1, entry_places(width))
        return chosen.view(*triangles.shape[:-1], width, width)
    whole = triangles.new_empty(*triangles.shape[:-1], width, width)
    if triangles.device.type != "cpu":
        rows, columns = torch.triu_indices(width, width, device=triangles.device)
        whole[..., rows, columns] = triangles
        whole[..., columns, rows] = triangles
        return whole
    flat, rows_of = triangles.detach().numpy(), whole.numpy()
    for row, part in _rows(width):
        rows_of[..., row, row:] = flat[..., part]
    stack = whole.view(triangles.shape[:-1].numel(), width, width)
    mirror_(stack)
    _mirror_within_(stack)
    return whole


def block_triangles(triangles: Tensor, width: int, block: slice) -> Tensor:
    """Upper triangles ``(..., B (B + 1) / 2)`` of blocks ``[block, block]`` on the diagonal.

    Args:
        triangles: ``(..., W (W + 1) / 2)`` of the whole matrices.
        width: ``W``.
        block: which rows and columns, ``B`` of them.
    """
    rows = islice(_rows(width), block.start, block.stop)
    parts = [triangles[..., part.start : part.start + block.stop - row] for row, part in rows]
    return torch.cat(parts, -1)


@lru_cache(maxsize=16)
def entry_places(width: int) -> Tensor:
    """``(W * W,)`` where each entry of a small matrix lies in its triangle; not to be changed."""
    places = torch.empty(width, width, dtype=torch.int64)
    for row, part in _rows(width):
        places[row, row:] = places[row:, row] = torch.arange(part.start, part.stop)
    return places.flatten()


def _rows(width: int) -> Iterator[tuple[int, slice]]:
    """Each row of a matrix ``(W, W)``, and where its part of the upper triangle lies in that."""
    start = 0
    for row in range(width):
        yield row, slice(start, start + width - row)
        start += width - row


def add_upper_products_(totals: Tensor, values: Tensor) -> None:
    """Add the upper blocks of ``values^T values`` to ``totals``; :func:`mirror_` gives the rest.

    Args:
        totals: ``(G, W, W)``.
        values: ``(G, L, W)``.
    """
    width = values.shape[2]
    block = _block(width)
    for start in range(0, width, block):
        left, right = values[:, :, start : start + block], values[:, :, start:]
        for total, a, b in zip(totals[:, start : start + block, start:], left, right, strict=True):
            total.addmm_(a.T, b)


def mirror_(totals: Tensor) -> None:
    """Copy the upper blocks of symmetric ``(G, W, W)`` to the lower ones."""
    width = totals.shape[2]
    block = _block(width)
    for start in range(block, width, block):
        totals[:, start : start + block, :start] = totals[:, :start, start : start + block].mT


def _mirror_within_(totals: Tensor) -> None:
    """What :func:`mirror_` leaves: copy the upper triangles of blocks on the diagonal to below."""
    width = totals.shape[2]
    side = _block(width)
    upper = torch.ones(side, side, dtype=torch.bool).triu_()
    for start in range(0, width, side):
        block = totals[:, start : start + side, start : start + side]
        chosen = upper[: block.shape[1], : block.shape[1]]
        block.copy_(torch.where(chosen, block, block.mT))


def _block(width: int) -> int:
    return max(_BLOCK, -(-width // 8))
