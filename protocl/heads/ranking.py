"""The best columns of score matrices that come block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Scores of some samples for some classes.

    Attributes:
        rows, columns: where the block stands in the matrix ``(N, C)``.
        scores: ``(n, c)``; its storage serves the next block, so nobody may keep it.
    """

    rows: slice
    columns: slice
    scores: Tensor


def best_columns(blocks: Iterator[Block], best: tuple[Tensor, Tensor]) -> None:
    """Write the largest scores and their columns, the lower column first among equals.

    Args:
        blocks: all blocks of a band of rows, columns ascending, before those of the next band.
        best: values ``(N, k)`` and columns ``(N, k)`` int64, filled in place; ``k <= C``.
    """
    values, columns = best
    band: tuple[Tensor, Tensor] | None = None
    for block in blocks:
        found = _largest(block.scores, min(values.shape[1], block.scores.shape[1]))
        found = found[0], found[1] + block.columns.start
        band = found if band is None or block.columns.start == 0 else _merge(band, found, values)
        if band[0].shape[1] == values.shape[1]:
            values[block.rows], columns[block.rows] = band


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest of each row in descending order, equal ones by ascending column."""
    if k == 1:
        top = scores.max(dim=1, keepdim=True)  # the first of equal ones, as torch documents
        return top.values, top.indices
    values, columns = scores.topk(k, dim=1, sorted=False)
    columns, order = columns.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    # topk takes any of the scores that equal the last one: rows with more of them are sorted.
    last = values[:, -1:]
    open_rows = ((scores == last).sum(1) > (values == last).sum(1)).nonzero()[:, 0]
    if len(open_rows):
        exact = scores[open_rows].sort(dim=1, descending=True, stable=True)
        columns[open_rows] = exact.indices[:, :k]
    return values, columns


def _merge(
    before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], like: Tensor
) -> tuple[Tensor, Tensor]:
    """The best of two sets of which the first has the lower columns."""
    if like.shape[1] == 1:
        better = after[0] > before[0]
        return torch.where(better, after[0], before[0]), torch.where(better, after[1], before[1])
    values, columns = (torch.cat(pair, dim=1) for pair in zip(before, after, strict=True))
    values, order = values.sort(dim=1, descending=True, stable=True)
    k = min(like.shape[1], values.shape[1])
    return values[:, :k], columns.gather(1, order[:, :k])
