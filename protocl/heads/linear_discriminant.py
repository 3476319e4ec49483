"""Linear discriminant analysis from additive statistics."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor

from protocl.config.validation import is_number, require_choice
from protocl.heads.centred import CentredHead
from protocl.heads.covariance.directions import squares_behind, warn_of_lost_scatter, whitened_error
from protocl.heads.covariance.shrinkage import or_euclidean, warn_of_unit, whitening
from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level
from protocl.memory.estimates.shrinkage import oas_shrinkage, shrink_towards_identity
from protocl.memory.estimates.streaming import StreamingMemory
from protocl.memory.feature_maps import FeatureMap, UnitNorm


class LinearDiscriminant(CentredHead):
    """A sample belongs to the class whose mean is nearest under one covariance for all classes.

    Logits are ``w_c . (f - m) + b_c`` with ``w_c = S^-1 (mu_c - m)`` and
    ``b_c = -(mu_c - m) . w_c / 2 (+ log prior)``, of the within-class covariance ``S`` shrunk
    towards the identity. ``m``, the middle of the class means,
    adds the same number to all logits of a sample, and keeps their digits where features are far
    from the origin. Without any scatter (one sample a class) distances are Euclidean, and a
    warning says so. Exact for any order of the samples, unlike the
    running estimate of Deep SLDA (Hayes & Kanan 2020), which ``streaming=True`` reproduces for
    comparison.

    Args:
        shrinkage: weight ``e`` of the target in ``(1 - e) S + e T``, or ``"auto"`` for the oracle
            approximating shrinkage estimator (Chen et al. 2010, eq. 23), a function of ``S``.
        target: ``"identity"`` for ``T = I`` (Deep SLDA) or ``"scaled"`` for
            ``T = tr(S) / W * I``, free of the features' unit; ``"auto"`` implies ``"scaled"``.
        priors: ``"uniform"`` or ``"empirical"`` (class frequencies).
        ddof: the scatter is divided by ``N`` for ``"n"``, by ``N - C`` for ``"n-c"``.
        normalize_input: divide each sample by its norm, in the statistics and in queries.
        streaming: estimate means and covariance one sample at a time as Deep SLDA does. The result
            depends on the order of the samples and cannot be merged.
        map: see :class:`.Head`; not beside ``normalize_input``.
        dtype: precision of the parameters and logits.

    Example:
        >>> head = LinearDiscriminant(shrinkage=0.1)
        >>> features = torch.tensor([[0.0, 0.0], [4.0, 0.1], [1.0, 2.0], [5.0, 2.1]])
        >>> memory = head.new_memory(2).update(features, torch.tensor([4, 4, 9, 9]))
        >>> head.fit(memory).predict(torch.tensor([[5.0, 0.5], [0.0, 1.5]])).tolist()
        [4, 9]
    """

    required_level: Level = "shared"
    _weights: Tensor
    _biases: Tensor

    def __init__(
        self,
        shrinkage: float | Literal["auto"] = 1e-4,
        *,
        target: Literal["identity", "scaled"] = "identity",
        priors: Literal["uniform", "empirical"] = "uniform",
        ddof: Literal["n", "n-c"] = "n",
        normalize_input: bool = False,
        streaming: bool = False,
        map: FeatureMap | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(dtype=dtype, map=map)
        if normalize_input:
            self._require_no_map("normalize_input=True", "normalize_input=False")
        if shrinkage != "auto" and not (is_number(shrinkage) and 0 <= shrinkage <= 1):
            raise ValueError(
                f"shrinkage={shrinkage!r}: expected 'auto' or a number between 0 and 1"
            )
        require_choice("target", target, ("identity", "scaled"))
        require_choice("priors", priors, ("uniform", "empirical"))
        require_choice("ddof", ddof, ("n", "n-c"))
        self.shrinkage = shrinkage
        self.target = target
        self.priors = priors
        self.ddof = ddof
        if streaming and (normalize_input or map is not None):
            raise ValueError(
                "streaming=True takes features as they are: use normalize_input=False and map=None"
            )
        self.normalize_input = normalize_input
        self.streaming = streaming
        self.ordered_by = "streaming" if streaming else ""

    def feature_map(self, feature_dim: int) -> FeatureMap:
        return UnitNorm() if self.normalize_input else super().feature_map(feature_dim)

    def new_memory(self, feature_dim: int, **options: object) -> PrototypeMemory:
        if self.streaming:
            return StreamingMemory(feature_dim, cast("str | None", options.get("fingerprint")))
        return super().new_memory(feature_dim, **options)  # type: ignore[arg-type]

    def _require(self, memory: PrototypeMemory) -> None:
        super()._require(memory)
        if self.streaming != isinstance(memory, StreamingMemory):
            kind = "a StreamingMemory" if self.streaming else "an additive memory"
            raise ValueError(
                f"LinearDiscriminant(streaming={self.streaming}) needs {kind}; "
                "make it with head.new_memory(feature_dim)"
            )

    def covariance(self, memory: PrototypeMemory) -> Tensor:
        """Within-class covariance ``(W, W)`` after shrinkage, float64."""
        return self._shrunk(*self._estimate(memory))

    def _shrunk(self, covariance: Tensor, samples: int) -> Tensor:
        if self.shrinkage == "auto":
            weight = oas_shrinkage(covariance, samples)
            return shrink_towards_identity(covariance, weight, scaled=True)
        if self.target == "identity":
            warn_of_unit(covariance, self.shrinkage)
        return shrink_towards_identity(covariance, self.shrinkage, scaled=self.target == "scaled")

    def _estimate(self, memory: PrototypeMemory) -> tuple[Tensor, int]:
        """Within-class covariance before shrinkage, and the degrees of freedom behind it."""
        freedom = memory.total - len(memory) if self.ddof == "n-c" else memory.total
        if freedom < 1:
            raise ValueError(
                f"LinearDiscriminant.fit: {memory.total} samples of {len(memory)} classes leave no "
                "degree of freedom for a covariance; use ddof='n' or more samples"
            )
        shared = memory if memory.level == "shared" else memory.at_level("shared")
        return or_euclidean(shared.scatter() / freedom, memory.means), freedom

    def _fit(self, memory: PrototypeMemory) -> None:
        means = self._move(memory.means)
        half = self._whitening(memory)
        weights = (half.T @ (half @ means.T)).T
        biases = -0.5 * (means * weights).sum(1)
        if self.priors == "empirical":
            biases = biases + (memory.counts / memory.total).log()
        self._set(_weights=weights, _biases=biases)

    def _whitening(self, memory: PrototypeMemory) -> Tensor:
        """``A`` ``(W, W)`` with ``A^T A`` equal to the inverse of the covariance."""
        estimate, samples = self._estimate(memory)
        covariance = self._shrunk(estimate, samples)
        # The pseudo-inverse is exact for a singular covariance (shrinkage 0, constant features).
        half = whitening(covariance[None])[0]
        squares = memory.squares if memory.level == "shared" else memory.squares.sum(0)
        squares = squares_behind(estimate, squares / samples)
        warn_of_lost_scatter(whitened_error(half, covariance, squares))
        return half

    def _scores(self, queries: Tensor, chosen: slice, out: Tensor) -> None:
        weights, biases = self._weights, self._biases
        torch.addmm(biases[chosen], queries, weights[chosen].T, out=out)
