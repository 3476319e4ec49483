"""Whether samples could have these sums and second moments: no scatter has a negative direction.

The scatter of a class, ``A = S - s s^T / n`` with ``n`` samples, sum ``s`` and second moment ``S``
(of all classes at level ``shared``, ``A = G - sum_c s_c s_c^T / n_c``), is a sum of squares and so
positive semidefinite. What arrives was rounded on the way; ``A + e I`` is positive definite for
every honest sender, with ``e`` a bound of what rounding can take away (:func:`_rounding`).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocl.federation.wire.limits import Limits
from protocl.federation.wire.statistics import Packed, PackedForm
from protocl.memory.symmetric import diagonal_places, unpack_triangles

_ULP = 2.0**-52
_PIECE = 1 << 17
"""Samples that a memory adds up in plain float64 at most, before a sum with an error of its own."""

_BLOCK = 1 << 22
"""Elements of the matrices that are factorised at once: 32 MiB."""

Floats = NDArray[np.float64]


def check_scatter(packed: Packed, form: PackedForm, limits: Limits, error: float) -> bool:
    """Whether samples could have such second moments, as far as rounding lets one tell.

    Features up to ``limits.max_width`` wide are judged by a Cholesky factor of each scatter matrix,
    wider ones pair by pair (Cauchy and Schwarz), with ``max_width=0`` none are.

    Args:
        packed: of level ``shared`` or ``full``, counts and magnitudes already checked.
        form: what it is.
        limits: see above.
        error: largest rounding error of a mean, as a share of the largest magnitude in its row.
    """
    if not limits.max_width:
        return True
    counts = packed.counts.astype(np.float64)
    sums, second = form.values(packed, "sum"), form.values(packed, "second")
    sums = sums.reshape(len(counts), form.width)
    if form.level == "shared":
        sums, second, counts = sums[None], second.reshape(1, -1), counts[None]
    else:
        sums, counts = sums[:, None], counts[:, None]
    slack = _rounding(sums, second, counts, form, error)
    judge = _factorises if form.width <= limits.max_width else _pairs_hold
    step = max(1, _BLOCK // form.width**2)
    return all(
        judge(*(part[start : start + step] for part in (sums, second, counts, slack)))
        for start in range(0, len(second), step)
    )


def _rounding(
    sums: Floats, second: Floats, counts: Floats, form: PackedForm, error: float
) -> Floats:
    """Bound ``(M,)`` of the eigenvalues that rounding can take from each scatter matrix.

    Three parts: sums in float64, here and at the sender, are off by at most ``2 n`` (a memory adds
    up a bounded number of samples in plain float64) roundings of the trace, and the factor by
    ``D``; a payload's entries by ``error`` of the largest in their row, ``D`` of which one
    eigenvalue can add up; and whole numbers of fixed point by half a unit.

    Args:
        sums: ``(M, C, D)`` of the classes in each matrix.
        second: ``(M, D (D + 1) / 2)``.
        counts: ``(M, C)``.
    """
    width, samples = form.width, counts.sum(axis=1)
    diagonal = np.abs(second[:, diagonal_places(width).numpy()])
    roundings = 2 * np.minimum(samples, _PIECE) + 2 * width + sums.shape[1] + 16
    # The explained part counts as well: of a class of one sample it is the whole.
    explained = ((sums**2).sum(axis=2) / counts).sum(axis=1)
    slack = roundings * _ULP * (diagonal.sum(axis=1) + explained) + samples * width * 1e-300
    if not error:
        return np.asarray(slack, dtype=np.float64)
    unit = form.units if form.exact else dict.fromkeys(form.units, 0.0)
    slack += width * (2 * error * diagonal.max(axis=1) + unit["second"])
    length = np.sqrt((sums**2).sum(axis=2))
    moved = 2 * error * counts * np.abs(sums / counts[:, :, None]).max(axis=2) + unit["sum"]
    moved *= np.sqrt(width)
    slack += (moved * (2 * length + moved) / counts).sum(axis=1)
    return np.asarray(slack, dtype=np.float64)


def _factorises(sums: Floats, second: Floats, counts: Floats, slack: Floats) -> bool:
    whole = unpack_triangles(torch.from_numpy(second), sums.shape[2])
    scatter = whole - _explained(torch.from_numpy(sums), torch.from_numpy(counts))
    scatter.diagonal(dim1=1, dim2=2).add_(torch.from_numpy(slack)[:, None])
    return not bool(torch.linalg.cholesky_ex(scatter).info.any())


def _explained(sums: Tensor, counts: Tensor) -> Tensor:
    """``sum_c s_c s_c^T / n_c`` ``(M, D, D)``."""
    weighted = sums / counts[:, :, None]
    return weighted.mT @ sums


def _pairs_hold(sums: Floats, second: Floats, counts: Floats, slack: Floats) -> bool:
    """``A_ij^2 <= A_ii A_jj``, row by row, since a whole matrix may be too large."""
    means, width = sums / counts[:, :, None], sums.shape[2]
    places = diagonal_places(width).tolist()
    variances = second[:, places] - (means * sums).sum(axis=1) + slack[:, None]
    if (variances < 0).any():
        return False
    for row, place in enumerate(places):
        explained = np.einsum("mc,mcd->md", means[:, :, row], sums[:, :, row:])
        entries = second[:, place : place + width - row] - explained
        bounds = np.sqrt(variances[:, row, None] * variances[:, row:]) + slack[:, None]
        if (np.abs(entries) > bounds).any():
            return False
    return True
