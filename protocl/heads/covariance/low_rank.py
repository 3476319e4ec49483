"""The factor of a Gram matrix of fewer samples than features, from the matrix alone."""

from __future__ import annotations

import torch
from torch import Tensor

FEW = 0.75
"""Samples a feature up to which a matrix is decomposed by way of its factor: it costs less."""

_BLOCK = 64
"""Columns of a factor after which the rest of the matrix is updated, in one product."""


def eigenpairs(gram: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a Gram matrix, all that are not zero.

    Args:
        gram: ``(W, W)``.
        samples: number of vectors whose products it sums.

    Returns:
        Eigenvalues ``(r,)`` in ascending order, none negative; eigenvectors ``(W, r)`` in columns;
        and 0-d how far the matrix is from these, at least by its least eigenvalue.
    """
    found = low_rank_factor(gram, samples) if samples <= FEW * len(gram) else None
    if found is None:
        values, vectors = torch.linalg.eigh(gram)
        return values.clamp(min=0), vectors, -values[0].clamp(max=0)
    factor, error = found
    # L^T L has the eigenvalues of L L^T but for zeros, and eigenvectors that L carries over.
    values, vectors = torch.linalg.eigh(factor.T @ factor)
    sound = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    values, vectors = values[sound], vectors[:, sound]
    return values, factor @ (vectors / values.sqrt()), error


def low_rank_factor(gram: Tensor, most: int) -> tuple[Tensor, Tensor] | None:
    """``L`` with ``L L^T`` equal to a positive semi-definite matrix up to rounding.

    Features are scaled alike first, so that what counts as rounding is measured by each one's own
    size.

    Args:
        gram: ``(W, W)``.
        most: rank that it can have.

    Returns:
        ``L`` ``(W, r)``, some of whose columns may be zero, with ``r`` up to ``most`` and the rest
        of a block, and 0-d the Frobenius norm of what is left of the matrix. None where more
        is left than rounding: the statistics were changed, and have another rank.

    Source: Cholesky's decomposition with diagonal pivoting, Higham 2002, "Accuracy and stability
    of numerical algorithms", section 10.3.
    """
    sizes = gram.diagonal().clamp(min=0).sqrt()
    scale = torch.where(sizes > 0, 1 / sizes, 0.0)
    rest = gram * scale[:, None] * scale
    tolerance = 4 * len(gram) * torch.finfo(gram.dtype).eps
    blocks: list[Tensor] = []
    while len(blocks) * _BLOCK < most and bool(rest.diagonal().max() > tolerance):
        blocks.append(_columns(rest, tolerance))
        rest.addmm_(blocks[-1], blocks[-1].T, alpha=-1)
    # No entry of a positive semi-definite matrix exceeds the largest of its diagonal.
    if not blocks or bool((rest.abs() > tolerance).any()):
        return None
    factor = torch.cat(blocks, 1)
    if int((factor != 0).any(0).sum()) > most:
        return None
    return factor * sizes[:, None], (rest * sizes[:, None] * sizes).norm()


def _columns(rest: Tensor, tolerance: float) -> Tensor:
    """The next columns ``(W, 64)`` of the factor of ``rest``, each by the largest diagonal left."""
    columns = rest.new_zeros(len(rest), _BLOCK)
    left = rest.diagonal().clone()
    for number in range(_BLOCK):
        pivot = left.argmax()
        value = left[pivot]
        column = rest[:, pivot] - columns[:, :number] @ columns[pivot, :number]
        column *= torch.where(value > tolerance, value.rsqrt(), 0.0)
        columns[:, number] = column
        left -= column.square()
        left[pivot] = 0.0
    return columns
