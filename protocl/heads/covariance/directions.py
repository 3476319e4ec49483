"""Whether directions in which features hardly vary survive the rounding of sums of squares.

A feature at a moderate distance from the origin keeps its own scatter, which is what
:mod:`.limits.scatter` looks at. A combination of features that varies far less than each of them
is lost earlier, and an inverse covariance is made of just those combinations.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from protocl.errors import PrecisionWarning

ROUNDING = 2e-15
"""Relative error of a sum of products: the entry ``ij`` is off by this times ``sqrt(q_i q_j)``.

Measured on 300 to 20,000 samples of 10 and 64 features, standard deviations of directions up to
10^4 apart, offsets up to 10^5 deviations: :func:`whitened_error` was within a factor of ten of the
true error wherever that was below one.
"""

SCATTER_LOST = 1e-2
"""Relative error of whitened scatter from which on answers were seen to change."""

PREDICTIONS_LOST = 5e-4
"""Error of predictions of one-hot targets from which on answers were seen to change."""


_FAR = 1e3
"""Offset in standard deviations from which on a direction without variance may be a lost one.

Nearer, it has less than 2e-9 of the variance of its features: these follow from each other.
"""


def squares_behind(scatter: Tensor, squares: Tensor) -> Tensor:
    """``squares`` ``(..., W)`` of the features that vary by ``scatter`` ``(..., W, W)``; else 0.

    A constant feature has no scatter, nor any that rounding could have taken.
    """
    return squares.masked_fill(scatter.diagonal(dim1=-2, dim2=-1) <= 0, 0.0)


def whitened_error(halves: Tensor, matrices: Tensor, squares: Tensor) -> float:
    """Largest relative error of scatter in any direction that is inverted, by first order.

    Rounding leaves ``E`` with entries of size ``eps sqrt(q_i q_j)`` in a matrix ``S``; whitened,
    ``A E A^T`` has the norm ``eps tr(A diag(q) A^T)``.

    Args:
        halves: ``(G, W, W)``, ``A`` with ``A^T A`` equal to the (pseudo-)inverse of ``S``.
        matrices: ``(G, W, W)``, ``S``, in any unit.
        squares: ``(G, W)`` or ``(W,)``, ``q``: the sums of squares behind ``S`` in its unit.
    """
    errors = ROUNDING * (halves.square() @ squares[..., None]).sum((-2, -1))
    hidden = _hidden(halves, matrices, squares)
    return float(torch.where(hidden, torch.inf, errors).max())


def _hidden(halves: Tensor, matrices: Tensor, squares: Tensor) -> Tensor:
    """Whether a direction was taken for one without variance that rounding may have hidden."""
    variances = matrices.diagonal(dim1=-2, dim2=-1)
    cut = (halves == 0).all(-1).sum(-1) > (variances <= 0).sum(-1)
    return cut & (squares > _FAR**2 * variances).any(-1)


def warn_of_lost_scatter(error: float) -> None:
    """Warn of a :func:`whitened_error` that changes answers."""
    if error > SCATTER_LOST:
        _warn("covariance within classes", error, "or use a larger shrinkage")


def warn_of_lost_predictions(error: float) -> None:
    """Warn of an error of predictions, whose targets are 0 and 1, that changes answers."""
    if error > PREDICTIONS_LOST:
        _warn("regression", error, "or use a larger regularization")


def _warn(what: str, error: float, otherwise: str) -> None:
    size = f"an error of {error:.0e}" if error < torch.inf else "all of it"
    warnings.warn(
        f"rounding of sums of squares takes {size} from the {what}: some combination of features "
        "varies too little for their distance from the origin; subtract a fixed offset from the "
        f"features before they are summed, leave out features that follow from others, {otherwise}",
        PrecisionWarning,
        stacklevel=6,
    )
