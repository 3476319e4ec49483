"""The best columns of score matrices that come block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScoreBlock:
    """Scores of some samples for some classes.

    Attributes:
        rows, columns: where the block stands in the matrix ``(N, C)``.
        scores: ``(n, c)``; its storage serves the next block, so nobody may keep it.
    """

    rows: slice
    columns: slice
    scores: Tensor


def slices(length: int, step: int) -> Iterator[slice]:
    """``0 ... length`` in pieces of ``step``, the last of what remains."""
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def best_columns(blocks: Iterator[ScoreBlock], best: tuple[Tensor, Tensor]) -> None:
    """Write the largest scores and their columns, the lower column first among equals.

    Args:
        blocks: all blocks of a band of rows, columns ascending, before those of the next band.
        best: values ``(N, k)`` and columns ``(N, k)`` int64, filled in place; ``k <= C``.
    """
    values, columns = best
    k = values.shape[1]
    band: tuple[Tensor, Tensor] | None = None
    for block in blocks:
        found, places = _largest(block.scores, k)
        places += block.columns.start
        if band is not None and block.columns.start > 0:
            # Those before have the lower columns, and equal ones stand by ascending column.
            places = torch.cat([band[1], places], dim=1)
            found, order = _largest(torch.cat([band[0], found], dim=1), k)
            places = places.gather(1, order)
        band = found, places
        if found.shape[1] == k:
            values[block.rows], columns[block.rows] = band


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest (all, if there are fewer) in descending order, the first of equal ones."""
    if k == 1:
        top = scores.max(dim=1, keepdim=True)  # the first of equal ones, as torch documents
        return top.values, top.indices
    values, columns = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    # topk takes any of equal scores, in any order. They are rare, so only their rows are redone:
    # from all scores where it had a choice, else by a sort of what it took.
    equal = values[:, 1:] == values[:, :-1]
    cut = equal[:, k - 1 :].any(1).nonzero()[:, 0]
    values, columns = values[:, :k], columns[:, :k]
    if len(cut):
        columns[cut] = scores[cut].sort(dim=1, descending=True, stable=True).indices[:, :k]
    tied = equal[:, : k - 1].any(1).nonzero()[:, 0]
    if len(tied):
        places = columns[tied].sort(dim=1).values
        order = scores[tied[:, None], places].sort(dim=1, descending=True, stable=True).indices
        columns[tied] = places.gather(1, order)
    return values, columns
