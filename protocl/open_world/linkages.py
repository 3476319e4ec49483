"""How alike two rows are without a model of categories: textbook linkages, from counts and sums."""

from __future__ import annotations

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.open_world.categories import Rows


def plain_rows(memory: PrototypeMemory) -> Rows:
    """Counts and sums of a memory's classes as they are, ids ascending.

    For :class:`AverageCosine` under the map ``unit``, for :class:`Ward` under any.
    """
    order = memory.classes.argsort()
    counts, sums = memory.counts[order].double(), memory.sums[order].double()
    return Rows(memory.classes[order], counts, sums)


class AverageCosine:
    """Mean cosine over all pairs of samples of two rows: average linkage.

    ``s_i . s_j / (n_i n_j)`` of sums over features of unit length. What
    :func:`~protocl.open_world.agglomeration.agglomerate` does with it equals average linkage over
    the samples, given the groups that it begins with: SciPy's height is one minus the cosine.

    Example:
        >>> samples = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
        >>> memory = PrototypeMemory(2).update(samples, torch.tensor([4, 4, 9]))
        >>> AverageCosine().same(plain_rows(memory), plain_rows(memory)).numpy().round(2)
        array([[0.5, 0.7],
               [0.7, 1. ]])
    """

    def same(self, left: Rows, right: Rows) -> Tensor:
        """``(R, Q)`` of ``R`` and ``Q`` rows, in [-1, 1]."""
        sums = left.coordinates @ right.coordinates.T
        return sums / (left.counts[:, None] * right.counts)


class Ward:
    """Minus the growth of the sum of squares within groups that joining two rows brings.

    ``- n_i n_j / (n_i + n_j) |mu_i - mu_j|^2``; SciPy's height is ``sqrt(2 x growth)``.

    Source: Ward, "Hierarchical grouping to optimize an objective function", JASA 1963.

    Example:
        >>> memory = PrototypeMemory(1).update(torch.tensor([[0.0], [3.0]]), torch.tensor([4, 9]))
        >>> Ward().same(plain_rows(memory), plain_rows(memory)).abs()
        tensor([[0.0000, 4.5000],
                [4.5000, 0.0000]], dtype=torch.float64)
    """

    def same(self, left: Rows, right: Rows) -> Tensor:
        """``(R, Q)`` of ``R`` and ``Q`` rows, at most 0."""
        gaps = torch.cdist(
            left.coordinates / left.counts[:, None],
            right.coordinates / right.counts[:, None],
            compute_mode="donot_use_mm_for_euclid_dist",  # whose rounding would show as gaps
        )
        both = left.counts[:, None] * right.counts / (left.counts[:, None] + right.counts)
        return -both * gaps.square()


def mean_squared_distance(left: Rows, right: Rows, of_left: Tensor, of_right: Tensor) -> Tensor:
    """Mean squared distance ``(R, Q)`` over all pairs of samples of two rows.

    ``q_i / n_i + q_j / n_j - 2 s_i . s_j / (n_i n_j)``.

    Args:
        left, right: ``R`` and ``Q`` rows.
        of_left, of_right: ``(R,)`` and ``(Q,)`` sums of squared lengths ``q`` of their samples;
            of features of unit length the counts.
    """
    lengths = (of_left / left.counts)[:, None] + of_right / right.counts
    return lengths - 2 * AverageCosine().same(left, right)
