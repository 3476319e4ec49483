"""Ridge regression onto one-hot labels: RanPAC, Fed3R, AFL, ACIL, AIR, Fly-CL, LoRanPAC."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from torch import Tensor

from protocl.config.validation import is_number, require_choice
from protocl.heads.centred import CentredHead
from protocl.heads.covariance.directions import warn_of_lost_predictions
from protocl.heads.regression.eigenpairs import (
    low_rank_memory,
    require_eigenpairs,
    require_low_rank,
)
from protocl.heads.regression.equations import Balance, Equations, Form, Scatter
from protocl.heads.regression.spectrum import Spectrum, decompose, rounding_error, solve
from protocl.heads.regression.strength import (
    NEAR,
    chosen_strength,
    cross_validation_errors,
    heldout_errors,
    warn_of_given_strength,
)
from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level
from protocl.memory.feature_maps import FeatureMap, ReluProjection


class Ridge(CentredHead):
    """A linear classifier is fitted to one-hot labels by ridge regression, from two sums.

    ``logits = h (A + lambda I)^-1 S`` with ``A = sum h h^T`` and ``S = sum h y^T``.
    ``h`` is the feature itself, or a function of it alone, such as ``relu(f W)`` with a fixed
    random ``W`` (RanPAC). ``A`` is the memory's pooled second moment and ``S`` its class sums, so
    the head, and the choice of ``lambda`` with it, follow from additive statistics, and merged
    statistics give the weights of all samples in one place. Published methods are points among
    the settings:

    ============================ ================== ======== ==== ========= ======= ==============
    method                       map                lambda   bias normalize balance dtype
    ============================ ================== ======== ==== ========= ======= ==============
    RanPAC                       relu_projection    auto     no   no        none    float32
    Fed3R                        none               0.01     yes  yes       none    float32
    AFL                          none               -> 0     no   no        none    float64
    ACIL                         relu_linear        0.001    no   no        none    float64
    AIR                          relu_linear        0.001    no   no        class   float64
    Fly-CL                       top_k              auto     no   no        none    float32
    LoRanPAC (with ``rank``)     relu_projection    0        no   no        none    float32
    ============================ ================== ======== ==== ========= ======= ==============

    Args:
        projection: number ``M`` of random features ``relu(f W)``, or None for the features as they
            are. A :class:`.ReluProjection` with given weights is taken as it is.
        seed: seed of the projection, or of the map.
        regularization: ``lambda``, or ``"auto"`` to choose it from
            :data:`.regression.spectrum.GRID`, which :func:`.grid_for` moves to very small or large
            features: by the error on ``heldout`` where :meth:`fit` is given one, else the least of
            those whose generalised cross-validation score is within :data:`.strength.NEAR` of the
            best; never below the error that rounding left in ``A``. An estimated second moment
            needs a number: a score of what samples did not give would be of no use.
        scatter: ``"total"``: ``A`` as above. ``"within"``: the scatter around class means, and
            ``N g g^T`` for the mean ``g`` of all (as FedCOF scores); it fits no targets, so that
            ``regularization`` must be a number.
        bias: append a constant feature to ``h``, whose weight is shrunk like the others.
        normalize: divide each class's weights by their norm, its bias with them but not counted.
        balance: ``"class"``: every class weighs alike whatever its number of samples (AIR), with
            the exact moment of each class from level ``full``. ``"shared"``: the same under the
            assumption that classes scatter alike, from level ``shared``, a C-th of the memory.
            ``"none"``: every sample weighs alike.
        rank: keep at most so many eigenpairs in place of ``A`` (:class:`.LowRankMemory`), and
            solve in the directions that are kept; an estimate, which depends on the order of
            batches, merges with nothing exact and forgets nothing. Of the settings above it goes
            with ``normalize`` and a given ``regularization``, which may be 0.
        share: of the number of samples so far, the most eigenpairs that are kept with ``rank``.
        map: see :class:`.Head`; in place of ``projection``.
        dtype: precision of the weights and logits.

    Attributes:
        chosen: the ``lambda`` in use after :meth:`fit`.

    Source: McDonnell et al. 2023, "RanPAC: random projections and pre-trained models for continual
    learning", section 4 and algorithm 1; for the others see :mod:`protocl.strategies.analytic` and
    :class:`.regression.equations.Equations`.

    Example:
        >>> features, labels = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([4, 9])
        >>> head = Ridge(regularization=1.0)
        >>> head.fit(head.new_memory(2).update(features, labels))(features)  # h (A + I)^-1 S
        tensor([[0.5000, 0.0000],
                [0.0000, 0.8000]])
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
        scatter: Scatter = "total",
        bias: bool = False,
        normalize: bool = False,
        balance: Balance = "none",
        rank: int | None = None,
        share: float = 0.75,
        map: FeatureMap | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(dtype=dtype, map=map)
        if not isinstance(projection, ReluProjection | None):
            _require_whole(projection)
        if projection is not None:
            self._require_no_map(f"projection={projection}", "projection=None")
        _require_strength(regularization, scatter, rank)
        require_choice("scatter", scatter, ("total", "within"))
        require_choice("balance", balance, ("none", "shared", "class"))
        self.projection = projection
        self.seed = seed
        self.regularization = regularization
        self.scatter, self.bias, self.balance = scatter, bias, balance
        self.normalize = normalize
        self.rank, self.share = rank, share
        self.required_level = "full" if balance == "class" else "shared"
        if rank is not None:
            require_low_rank(rank, share, self.form)
            self.required_level, self.ordered_by = "mean", "rank"
        self.chosen: float | None = None
        self._heldout: PrototypeMemory | None = None
        self._chosen_on: str | None = None
        self._drawn: ReluProjection | None = None

    @property
    def form(self) -> Form:
        """What is regressed."""
        return Form(self.scatter, self.bias, self.balance)

    def feature_map(self, feature_dim: int) -> FeatureMap:
        if self.projection is None:
            return super().feature_map(feature_dim)
        if isinstance(self.projection, ReluProjection):
            return self.projection
        if self._drawn is None or len(self._drawn.weight) != feature_dim:
            self._drawn = ReluProjection(feature_dim, self.projection, seed=self.seed)
        return self._drawn

    def new_memory(self, feature_dim: int, **options: Any) -> PrototypeMemory:
        if self.rank is None:
            return super().new_memory(feature_dim, **options)
        return low_rank_memory(self, feature_dim, self.rank, self.share, options)

    def twin(self) -> Self:
        twin = super().twin()
        # Another lambda would give the scores another scale.
        twin.regularization = self.regularization if self.chosen is None else self.chosen
        return twin

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

    def _require(self, memory: PrototypeMemory) -> None:
        super()._require(memory)
        if self.rank is not None:
            require_eigenpairs(memory, self.rank, self.share)
        elif memory.estimated and self.regularization == "auto":
            raise ValueError(
                "regularization='auto' scores fits by exact sums, and this second moment is an "
                f"estimate ({memory.estimated}): give a number, such as regularization=1000.0"
            )

    def _fit(self, memory: PrototypeMemory) -> None:
        form = self.form
        if self.regularization == "auto":
            spectrum = decompose(memory, form)
            self.chosen = self._choose(memory, spectrum, form)
            weights, reach = spectrum.weights(self.chosen), spectrum.reach(self.chosen)
        else:
            self.chosen = self.regularization
            warn_of_given_strength(self.chosen, memory)
            weights, reach = solve(memory, self.chosen, form)
        self._move(memory.means)
        if self.rank is None:  # eigenpairs come of the features themselves, not of their squares
            warn_of_lost_predictions(rounding_error(Equations(memory, form), weights, reach))
        weights, biases = self._scaled(weights)
        self._set(_weights=weights, _biases=self._centre.to(weights) @ weights + biases)

    def _choose(self, memory: PrototypeMemory, spectrum: Spectrum, form: Form) -> float:
        if self._heldout is None:
            return chosen_strength(spectrum, cross_validation_errors(spectrum), NEAR)
        rest = decompose(memory - self._heldout, form)._replace(grid=spectrum.grid)
        return chosen_strength(spectrum, heldout_errors(rest, self._heldout, form), 0.0)

    def _scaled(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weights ``(W, C)`` of features, and biases ``(C,)``, of solved ones ``(V, C)``."""
        width = len(weights) - self.bias
        if self.normalize:
            norms = weights[:width].norm(dim=0)
            weights = weights / torch.where(norms > 0, norms, 1.0)
        return weights[:width], weights[width:].sum(0)

    def _scores(self, queries: Tensor, chosen: slice, out: Tensor) -> None:
        torch.addmm(self._biases[chosen], queries, self._weights[:, chosen], out=out)


def _require_strength(regularization: float | str, scatter: str, rank: int | None) -> None:
    if rank is not None:
        if not (is_number(regularization) and float(regularization) >= 0):
            raise ValueError(
                f"regularization={regularization!r}: eigenpairs (rank={rank}) cannot choose it by "
                "exact sums; expected a number >= 0, such as regularization=0"
            )
        return
    if regularization != "auto" and not (is_number(regularization) and float(regularization) > 0):
        raise ValueError(f"regularization={regularization!r}: expected 'auto' or a number > 0")
    if regularization == "auto" and scatter == "within":
        raise ValueError(
            "scatter='within' fits no targets by whose error 'auto' could choose: "
            "give a number, such as regularization=1.0"
        )


def _require_whole(projection: object) -> None:
    """Refuse what is no number of random features, such as the strength in the wrong place."""
    if isinstance(projection, bool) or not hasattr(projection, "__index__"):
        hint = f"; the strength is regularization={projection}" if is_number(projection) else ""
        raise TypeError(
            f"projection={projection!r}: expected a whole number of random features, a "
            f"ReluProjection, or None{hint}"
        )
