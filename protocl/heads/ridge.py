"""Ridge regression onto one-hot labels, with or without random features: RanPAC."""

from __future__ import annotations

import math
from copy import copy
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from protocl.config.validation import is_number
from protocl.heads.centred import CentredHead
from protocl.heads.covariance.directions import ROUNDING, warn_of_lost_predictions
from protocl.heads.covariance.low_rank import FEW, eigenpairs
from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level
from protocl.memory.feature_maps import FeatureMap, ReluProjection

_POWERS = range(-8, 9)

GRID = tuple(10.0**power for power in _POWERS)
"""Regularisation strengths among which ``"auto"`` chooses (RanPAC's grid); see :func:`grid_for`."""

ORDINARY = 6
"""Powers of ten of the variance of features up to which :data:`GRID` is taken as it is."""

NEAR = 0.03
"""Share by which a cross-validation score may exceed the least one and count as equal to it.

The score is a squared error, whose minimum is flat and lies at too large a strength where samples
are few; the least strength of like score ranks classes better. Of eleven shares from 0 to 0.3 this
one lost least on held-out samples against the best strength: 0.7 points of accuracy in the mean of
20 cases (digits, CIFAR-100 features, one sample a class; 20 to 5,000 samples) and 2.3 at worst,
where the minimum itself loses 1.7, and 7.2 at worst.
"""


_NOTHING = 1e-9
"""Share of ``lambda`` by which an eigenvalue may be below zero and count as zero."""


class Spectrum(NamedTuple):
    """``G = V diag(e) V^T`` and the class sums in its basis.

    Attributes:
        values: ``(r,)`` eigenvalues ``e``, none negative; all that are not zero.
        vectors: ``(W, r)`` eigenvectors ``V`` in columns.
        rotated: ``(r, C)``, ``V^T C``.
        classes: ``(C,)`` class ids.
        error: 0-d, how far ``G`` is from one that samples could have, by its least eigenvalue or
            what is left of it beside these: next to nothing, unless the statistics were rounded on
            their way.
        samples: their number.
        grid: strengths that suit the size of ``G``, see :func:`grid_for`.
    """

    values: Tensor
    vectors: Tensor
    rotated: Tensor
    classes: Tensor
    error: Tensor
    samples: int
    grid: tuple[float, ...]

    def weights(self, regularization: float) -> Tensor:
        """``(G + lambda I)^-1 C``, ``(W, C)``."""
        return self.vectors @ (self.rotated / (self.values + regularization)[:, None])

    def reach(self, regularization: float) -> Tensor:
        """Diagonal of ``(G + lambda I)^-1 G (G + lambda I)^-1``, ``(W,)``."""
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


def decompose(memory: PrototypeMemory) -> Spectrum:
    """Decompose the Gram matrix once, for every ``lambda``."""
    shared = memory if memory.level == "shared" else memory.at_level("shared")
    values, vectors, error = eigenpairs(shared.second_moment, memory.total)
    mean = memory.sums.sum(0) / memory.total
    variance = float((shared.squares / memory.total - mean.square()).mean())
    rotated = vectors.T @ memory.sums.T
    return Spectrum(
        values,
        vectors,
        rotated,
        memory.classes,
        error,
        memory.total,
        grid_for(variance),
    )


def solve(memory: PrototypeMemory, regularization: float) -> tuple[Tensor, Tensor]:
    """``(G + lambda I)^-1 C`` ``(W, C)`` and :meth:`Spectrum.reach` for a given ``lambda``.

    A Cholesky factor tells both, where no eigenvalue is so far below zero that it counts; those
    are taken for zero otherwise.
    """
    shared = memory if memory.level == "shared" else memory.at_level("shared")
    gram = shared.second_moment
    if memory.total > FEW * len(gram) and _is_semidefinite(gram, _NOTHING * regularization):
        gram.diagonal().add_(regularization)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if not failed:
            inverse = torch.cholesky_inverse(factor)
            reach = inverse.diagonal() - regularization * inverse.square().sum(1)
            return torch.cholesky_solve(memory.sums.T, factor), reach.clamp(min=0)
    spectrum = decompose(memory)
    return spectrum.weights(regularization), spectrum.reach(regularization)


def _is_semidefinite(gram: Tensor, slack: float) -> bool:
    """Whether no eigenvalue is below ``-slack``, nor so close to it that rounding hides it."""
    raised = gram.clone()
    raised.diagonal().add_(slack)
    return not torch.linalg.cholesky_ex(raised)[1]


def rounding_error(memory: PrototypeMemory, weights: Tensor, reach: Tensor) -> float:
    """Root mean square over samples that rounding of ``G`` leaves in a prediction, by first order.

    Args:
        memory: of the samples.
        weights: ``(W, C)``, ``(G + lambda I)^-1 C``.
        reach: ``(W,)``, see :meth:`Spectrum.reach`.
    """
    squares = memory.squares if memory.level == "shared" else memory.squares.sum(0)
    errors = (squares @ reach) / memory.total * (squares @ weights.square())
    return ROUNDING * float(errors.max().sqrt())


def cross_validation_errors(spectrum: Spectrum) -> Tensor:
    """Generalised cross-validation score for each ``lambda`` of the spectrum's grid, ``(17,)``.

    ``(RSS / N) / (1 - sum_i e_i / (e_i + lambda) / N)^2`` with
    ``RSS = N - 2 tr(W^T C) + tr(W^T G W)``, infinite where the fit uses up every sample.

    Source: Golub, Heath & Wahba 1979, written for one-hot targets.
    """
    values, samples = spectrum.values, spectrum.samples
    grid = torch.tensor(spectrum.grid, dtype=values.dtype, device=values.device)[:, None]
    energy = spectrum.rotated.square().sum(1)
    shrunk = values + grid
    if len(values) < len(spectrum.vectors):
        # All but nothing of the targets is left, and differences to it would be rounding.
        shares, left = energy / values, grid / shrunk
        beyond = (samples - shares.sum()).clamp(min=0) if len(values) < samples else 0.0
        residual = beyond + (shares * left.square()).sum(1)
        free = (samples - len(values) + left.sum(1)) / samples
    else:
        residual = samples + (energy * (values / shrunk - 2) / shrunk).sum(1)
        free = 1 - (values / shrunk).sum(1) / samples
    score = residual.clamp(min=0) / samples / free.square()
    return torch.where(free > 1e-6, score, torch.inf)


def heldout_errors(spectrum: Spectrum, heldout: PrototypeMemory) -> Tensor:
    """Mean squared error on held-out samples for each ``lambda`` of the spectrum's grid, ``(17,)``.

    ``[tr(W^T G1 W) - 2 tr(W^T C1) + n1] / (n1 C)`` with ``W`` fitted on the rest: the same numbers
    as predicting the held-out samples one by one (RanPAC, algorithm 1), from their sums alone.

    Args:
        spectrum: of the samples that are not held out.
        heldout: their statistics, over classes that the others know.
    """
    shared = heldout if heldout.level == "shared" else heldout.at_level("shared")
    gram = spectrum.vectors.T @ shared.second_moment @ spectrum.vectors
    sums = torch.zeros_like(spectrum.rotated)
    places = torch.searchsorted(spectrum.classes, heldout.classes)
    sums[:, places] = spectrum.vectors.T @ heldout.sums.T
    errors = []
    for regularization in spectrum.grid:
        weights = spectrum.rotated / (spectrum.values + regularization)[:, None]
        errors.append((weights * (gram @ weights - 2 * sums)).sum() + heldout.total)
    return torch.stack(errors) / (heldout.total * len(spectrum.classes))


class Ridge(CentredHead):
    """``logits = h (G + lambda I)^-1 C`` with ``G = sum h h^T`` and ``C = sum h y^T``.

    ``h`` is the feature itself, or ``relu(f W)`` with a fixed random ``W`` (RanPAC). ``G`` is the
    memory's pooled second moment and ``C`` its class sums, so the head, and the choice of
    ``lambda`` with it, follow from additive statistics.

    Args:
        projection: number ``M`` of random features, or None for the features as they are. A
            :class:`.ReluProjection` with given weights is taken as it is.
        seed: seed of the projection.
        regularization: ``lambda``, or ``"auto"`` to choose it from :data:`GRID`, which
            :func:`grid_for` moves to very small or large features: by the error on ``heldout``
            where :meth:`fit` is given one, else the least of those whose generalised
            cross-validation score is within :data:`NEAR` of the best; never below the error that
            rounding left in ``G``.
        dtype: precision of the weights and logits.

    Attributes:
        chosen: the ``lambda`` in use after :meth:`fit`.

    Source: McDonnell et al. 2023, "RanPAC: random projections and pre-trained models for continual
    learning", section 4 and algorithm 1.
    """

    required_level: Level = "shared"
    _weights: Tensor
    _biases: Tensor

    def __init__(
        self,
        projection: int | ReluProjection | None = None,
        *,
        seed: int = 0,
        regularization: float | Literal["auto"] = "auto",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(dtype=dtype)
        if not isinstance(projection, ReluProjection | None):
            _require_whole(projection)
        if regularization != "auto" and not (is_number(regularization) and regularization > 0):
            raise ValueError(f"regularization={regularization!r}: expected 'auto' or a number > 0")
        self.projection = projection
        self.seed = seed
        self.regularization = regularization
        self.chosen: float | None = None
        self._heldout: PrototypeMemory | None = None
        self._chosen_on: str | None = None
        self._drawn: ReluProjection | None = None

    def feature_map(self, feature_dim: int) -> FeatureMap:
        if self.projection is None:
            return FeatureMap()
        if isinstance(self.projection, ReluProjection):
            return self.projection
        if self._drawn is None or len(self._drawn.weight) != feature_dim:
            self._drawn = ReluProjection(feature_dim, self.projection, seed=self.seed)
        return self._drawn

    def twin(self) -> Self:
        twin = super().twin()
        # Another lambda would give the scores another scale.
        twin.regularization = self.regularization if self.chosen is None else self.chosen
        return twin

    def mapped_logits(self, mapped: Tensor) -> Tensor:
        plain = copy(self)
        plain.projection = None  # what is mapped is not mapped again
        return plain._logits(self._taken(mapped))

    @torch.no_grad()
    def fit(self, memory: PrototypeMemory, heldout: PrototypeMemory | None = None) -> Self:
        """Derive the weights; does nothing if neither memory has changed since the last fit.

        Args:
            memory: statistics of all samples.
            heldout: statistics of some of these samples, on which ``lambda`` is chosen. The fit
                behind the choice uses ``memory - heldout``, the final weights use all of it.
        """
        chosen_on = None if heldout is None else heldout.revision
        if chosen_on != self._chosen_on and self.regularization == "auto":
            self._revision = None
        self._heldout = heldout
        try:
            super().fit(memory)
        finally:
            self._heldout = None
        self._chosen_on = chosen_on
        return self

    def _fit(self, memory: PrototypeMemory) -> None:
        if self.regularization == "auto":
            spectrum = decompose(memory)
            self.chosen = self._choose(memory, spectrum)
            weights, reach = spectrum.weights(self.chosen), spectrum.reach(self.chosen)
        else:
            self.chosen = self.regularization
            weights, reach = solve(memory, self.chosen)
        self._move(memory.means)
        warn_of_lost_predictions(rounding_error(memory, weights, reach))
        self._set(_weights=weights, _biases=self._centre.to(weights) @ weights)

    def _choose(self, memory: PrototypeMemory, spectrum: Spectrum) -> float:
        if self._heldout is not None:
            rest = decompose(memory - self._heldout)._replace(grid=spectrum.grid)
            errors, near = heldout_errors(rest, self._heldout), 0.0
        else:
            errors, near = cross_validation_errors(spectrum), NEAR
        # What is less than the error of G fits that error, and looks best by it.
        grid = torch.tensor(spectrum.grid, dtype=errors.dtype)
        sound = grid >= spectrum.error.cpu().clamp(max=grid[-1])
        errors = torch.where(sound, errors.cpu(), torch.inf)
        return spectrum.grid[int((errors <= errors.min() * (1 + near)).nonzero()[0])]

    def _mapped(self, features: Tensor) -> Tensor:
        return self.feature_map(features.shape[1])(features)

    def _scores(self, queries: Tensor, chosen: slice, out: Tensor) -> None:
        torch.addmm(self._biases[chosen], queries, self._weights[:, chosen], out=out)


def _require_whole(projection: object) -> None:
    """Refuse what is no number of random features, such as the strength in the wrong place."""
    if isinstance(projection, bool) or not hasattr(projection, "__index__"):
        hint = f"; the strength is regularization={projection}" if is_number(projection) else ""
        raise TypeError(
            f"projection={projection!r}: expected a whole number of random features, a "
            f"ReluProjection, or None{hint}"
        )
