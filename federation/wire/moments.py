"""Whether samples could have these sums and second moments: no scatter has a negative direction.

The scatter of a class, ``A = S - s s^T / n`` with ``n`` samples, sum ``s`` and second moment ``S``
(of all classes at level ``shared``, ``A = G - sum_c s_c s_c^T / n_c``), is a sum of squares and so
positive semidefinite. What arrives was rounded on the way; ``A + e I`` is positive definite for
every honest sender, with ``e`` a bound of what rounding can take away (:class:`Moments`).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf

from protocl.federation.wire.statistics import Packed, PackedForm, extremes
from protocl.memory.symmetric import GATHERED, diagonal_places, entry_places, unpack_triangles

_ULP = 2.0**-52
_PIECE = 1 << 17
"""Samples that a memory adds up in plain float64 at most, before a sum with an error of its own."""

_BLOCK = 1 << 16
"""Elements of the matrices that are made at once: 512 KiB, which stay near the processor."""

_LEAST = 1e-300
"""Of one sample's second moment: smaller numbers lose their bits."""

Floats = NDArray[np.float64]


class Moments:
    """Sums and second moments of one contribution in units of the features, each computed once.

    There are ``M`` matrices of second moments: one at level ``shared``, else one a class.

    Args:
        packed: counts and magnitudes already checked; with second moments.
        form: what it is.
        error: largest rounding error of a mean, as a share of the largest magnitude in its row.
    """

    def __init__(self, packed: Packed, form: PackedForm, error: float) -> None:
        self._form, self._error = form, error
        classes, matrices = len(packed.counts), 1 if form.level == "shared" else len(packed.counts)
        each = classes // matrices
        self._counts = packed.counts.astype(np.float64).reshape(matrices, each)
        self._sums = form.values(packed, "sum").reshape(matrices, each, form.width)
        self._second = form.values(packed, "second").reshape(matrices, -1)
        self._diagonal = self._second
        if form.level != "diagonal":
            self._diagonal = self._second.take(diagonal_places(form.width).numpy(), axis=1)
        explained = self._sums * self._sums
        explained /= self._counts[:, :, None]
        self._explained = explained.sum(axis=1)  # by means, of the diagonal

    def variances_hold(self) -> bool:
        """``n sum f^2 >= (sum f)^2`` in every dimension: no variance is negative."""
        lacking = (self._explained - self._diagonal).max()
        if lacking <= 0:
            return True
        largest = max(*map(abs, extremes(self._second)), self._explained.max())
        return bool(lacking <= (1e-9 + 4 * self._error) * largest + self._counts.sum() * _LEAST)

    def scatter_holds(self, max_width: int) -> bool:
        """Whether samples could have such second moments, as far as rounding lets one tell.

        Args:
            max_width: of features up to which a Cholesky factor of each scatter matrix is the
                judge. Wider ones are judged pair by pair (Cauchy and Schwarz), with 0 none are.
        """
        width, parts = self._form.width, (self._sums, self._second, self._counts)
        if not max_width:
            return True
        slack = self._rounding()
        if width > max_width:
            return _pairs_hold(*parts, slack)
        step = max(1, _BLOCK // width**2)
        return all(
            _factorises(*(part[start : start + step] for part in (*parts, slack)))
            for start in range(0, len(slack), step)
        )

    def _rounding(self) -> Floats:
        """Bound ``(M,)`` of the eigenvalues that rounding can take from each scatter matrix.

        Three parts: sums in float64, here and at the sender, are off by at most ``2 n`` (a memory
        adds up a bounded number of samples in plain float64) roundings of the trace, and the factor
        by ``D``; a payload's entries by ``error`` of the largest in their row, ``D`` of which one
        eigenvalue can add up; and whole numbers of fixed point by half a unit.
        """
        width, samples = self._form.width, self._counts.sum(axis=1)
        diagonal = np.abs(self._diagonal)
        roundings = 2 * np.minimum(samples, _PIECE) + 2 * width + self._counts.shape[1] + 16
        # The explained part counts as well: of a class of one sample it is the whole.
        trace = diagonal.sum(axis=1) + self._explained.sum(axis=1)
        slack = roundings * _ULP * trace + samples * width * _LEAST
        return slack + self._of_payload(diagonal) if self._error else slack

    def _of_payload(self, diagonal: Floats) -> Floats:
        """The part ``(M,)`` of the bound that is of rounded means."""
        sums, counts, width = self._sums, self._counts, self._form.width
        unit = self._form.units if self._form.exact else dict.fromkeys(self._form.units, 0.0)
        moved = 2 * self._error * counts * np.abs(sums / counts[:, :, None]).max(axis=2)
        moved += unit["sum"]
        moved *= np.sqrt(width)
        of_sums = (moved * (2 * np.sqrt((sums**2).sum(axis=2)) + moved) / counts).sum(axis=1)
        of_second = width * (2 * self._error * diagonal.max(axis=1) + unit["second"])
        return np.asarray(of_second + of_sums, dtype=np.float64)


def _factorises(sums: Floats, second: Floats, counts: Floats, slack: Floats) -> bool:
    scatter = _unpacked(second, width := sums.shape[2])
    scatter -= (sums / counts[:, :, None]).transpose(0, 2, 1) @ sums
    scatter.reshape(len(scatter), -1)[:, :: width + 1] += slack[:, None]
    return all(map(_is_positive, scatter))


def _unpacked(second: Floats, width: int) -> Floats:
    """Matrices ``(M, D, D)``."""
    if width <= GATHERED:
        whole = second.take(entry_places(width).numpy(), axis=1)
        return whole.reshape(len(second), width, width)
    return np.asarray(unpack_triangles(torch.from_numpy(second), width).numpy(), dtype=np.float64)


def _is_positive(matrix: Floats) -> bool:
    """Whether a matrix has a Cholesky factor; what is in ``matrix`` is lost."""
    # Two to six times as fast as torch's. Columns come first there, and symmetry makes them rows.
    factor, stopped = dpotrf(matrix.T, lower=1, clean=0, overwrite_a=1)
    # NaN stops no factor, but all that follows is NaN.
    return bool(stopped == 0 and factor[-1, -1] > 0)


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
