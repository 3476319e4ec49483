"""The solution of the equations of a ridge regression, for one strength or for all."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from protocl.heads.covariance.directions import ROUNDING
from protocl.heads.covariance.low_rank import FEW, eigenpairs
from protocl.heads.regression.equations import PLAIN, Equations, Form
from protocl.memory import PrototypeMemory
from protocl.memory.estimates.eigenpairs import LowRankMemory

_POWERS = range(-8, 10)

GRID = tuple(10.0**power for power in _POWERS)
"""Regularisation strengths among which ``"auto"`` chooses; see :func:`grid_for`.

RanPAC's grid ends at 10^8. The best strength grows with samples and random features (10^6 with
10,000 of each), so there is one more.
"""

ORDINARY = 6
"""Powers of ten of the variance of features up to which :data:`GRID` is taken as it is."""

_NOTHING = 1e-9
"""Share of ``lambda`` by which an eigenvalue may be below zero and count as zero."""


class Spectrum(NamedTuple):
    """``A = V diag(e) V^T`` and the targets in its basis.

    Attributes:
        values: ``(r,)`` eigenvalues ``e``, none negative; all that are not zero.
        vectors: ``(V, r)`` eigenvectors in columns.
        rotated: ``(r, C)``, ``V^T S``.
        classes: ``(C,)`` class ids.
        error: 0-d, how far ``A`` is from one that samples could have, by its least eigenvalue or
            what is left of it beside these: next to nothing, unless the statistics were rounded on
            their way.
        samples: their number.
        mass: sum of their weights.
        grid: strengths that suit the size of ``A``, see :func:`grid_for`.
    """

    values: Tensor
    vectors: Tensor
    rotated: Tensor
    classes: Tensor
    error: Tensor
    samples: int
    mass: float
    grid: tuple[float, ...]

    def weights(self, regularization: float) -> Tensor:
        """``(A + lambda I)^-1 S``, ``(V, C)``."""
        return self.vectors @ (self.rotated / (self.values + regularization)[:, None])

    def reach(self, regularization: float) -> Tensor:
        """Diagonal of ``(A + lambda I)^-1 A (A + lambda I)^-1``, ``(V,)``."""
        shares = self.values / (self.values + regularization).square()
        return self.vectors.square() @ shares


def grid_for(variance: float) -> tuple[float, ...]:
    """:data:`GRID`, moved by powers of ten to features of uncommon size.

    A strength has the unit of a squared feature. Up to :data:`ORDINARY` powers of ten from 1 the
    published strengths reach far enough to either side; beyond, they would all be far too large
    or too small, and move along with the features.

    Args:
        variance: mean over the features of their variance over all samples; where it is zero
            nothing tells a size.
    """
    power = round(math.log10(variance)) if variance > 0 else 0
    return GRID if abs(power) <= ORDINARY else tuple(10.0 ** (p + power) for p in _POWERS)


def decompose(memory: PrototypeMemory, form: Form = PLAIN) -> Spectrum:
    """Decompose the matrix of the equations once, for every ``lambda``."""
    if isinstance(memory, LowRankMemory):
        return _of_eigenpairs(memory)
    equations = Equations(memory, form)
    values, vectors, error = eigenpairs(equations.matrix(), _directions(equations))
    return Spectrum(
        values,
        vectors,
        vectors.T @ equations.targets,
        memory.classes,
        error,
        memory.total,
        equations.mass,
        grid_for(_variance(memory)),
    )


def _directions(equations: Equations) -> int:
    """The most directions of the targets: as ``A`` has, but where it lacks the class means."""
    within = equations.form.scatter == "within"
    return equations.width if within else equations.memory.total


def _of_eigenpairs(memory: LowRankMemory) -> Spectrum:
    """The eigenpairs that are kept; weights then lie in their directions."""
    vectors, samples = memory.vectors, memory.total
    rotated, error = vectors.T @ memory.sums.T, memory.error[0]
    return Spectrum(
        memory.values, vectors, rotated, memory.classes, error, samples, samples, GRID
    )  # fmt: skip


def _variance(memory: PrototypeMemory) -> float:
    """Mean over the features of their variance over all samples."""
    squares = memory.squares if memory.level == "shared" else memory.squares.sum(0)
    mean = memory.sums.sum(0) / memory.total
    return float((squares / memory.total - mean.square()).mean())


def solve(
    memory: PrototypeMemory, regularization: float, form: Form = PLAIN
) -> tuple[Tensor, Tensor]:
    """``(A + lambda I)^-1 S`` ``(V, C)`` and :meth:`Spectrum.reach` for a given ``lambda``.

    A Cholesky factor tells both, where no eigenvalue is so far below zero that it counts; those
    are taken for zero otherwise. Eigenpairs are solved in their own directions.
    """
    equations = Equations(memory, form)
    if not isinstance(memory, LowRankMemory) and _directions(equations) > FEW * equations.width:
        matrix = equations.matrix()
        if _is_semidefinite(matrix, _NOTHING * regularization):
            matrix.diagonal().add_(regularization)
            factor, failed = torch.linalg.cholesky_ex(matrix)
            if not failed:
                inverse = torch.cholesky_inverse(factor)
                reach = inverse.diagonal() - regularization * inverse.square().sum(1)
                return torch.cholesky_solve(equations.targets, factor), reach.clamp(min=0)
    spectrum = decompose(memory, form)
    return spectrum.weights(regularization), spectrum.reach(regularization)


def _is_semidefinite(matrix: Tensor, slack: float) -> bool:
    """Whether no eigenvalue is below ``-slack``, nor so close to it that rounding hides it."""
    raised = matrix.clone()
    raised.diagonal().add_(slack)
    return not torch.linalg.cholesky_ex(raised)[1]


def rounding_error(equations: Equations, weights: Tensor, reach: Tensor) -> float:
    """Root mean square over samples that rounding of ``A`` leaves in a prediction, by first order.

    Args:
        equations: of the samples; their matrix is not looked at.
        weights: ``(V, C)``, ``(A + lambda I)^-1 S``.
        reach: ``(V,)``, see :meth:`Spectrum.reach`.
    """
    squares = equations.squares
    errors = (squares @ reach) / equations.mass * (squares @ weights.square())
    return ROUNDING * float(errors.max().sqrt())
