"""Bayesian prototypes: calibrated probabilities, and a score for classes never seen."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from protocl.config.validation import require_choice
from protocl.heads.base import Head
from protocl.heads.bayesian.conjugate import (
    Predictive,
    Unseen,
    log_evidence,
    log_joint_in_pieces,
    posterior,
    predictive,
    unknown_probability,
    unseen_class,
)
from protocl.heads.bayesian.noise import estimate_noise, estimate_prior, noise_matrix, noise_of
from protocl.heads.bayesian.priors import Beliefs, Covariance, Prior
from protocl.heads.probabilities.calibration import raise_winners_
from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level
from protocl.memory.feature_maps import FeatureMap

_LEVELS: dict[Covariance, Level] = {"iso": "diagonal", "diag": "diagonal", "full": "shared"}


class BayesianPrototypes(Head):
    """Gaussian classes whose means are uncertain answer by their posterior predictive.

    ``logits[:, c] = log p(z, y = c)``, so that their softmax is ``p(y = c | z)``: a class of few
    samples is uncertain of its mean, hence wider, and a class of many samples is more probable.
    Under a flat prior, equal counts and one noise variance it is :class:`NearestMean`.

    Args:
        prior: belief about a class before its first sample; ``"auto"`` takes mean and spread of
            the class means in the memory (empirical Bayes).
        noise: variance of a class's samples around its mean: a number, or ``(D,)`` for
            ``"diag"``, ``(D, D)`` for ``"full"``; ``"auto"`` takes the within-class variance in
            the memory.
        covariance: ``"iso"`` (one number), ``"diag"`` (one a feature) or ``"full"``. Correlated
            features count as independent evidence in the first two, which makes
            the probabilities too sure.
        map: see :class:`.Head`; prior and noise are those of samples under it.
        dtype: precision of the parameters and logits.

    Source: Kessler et al. 2023, "On sequential Bayesian inference for continual learning",
    section 7 (ProtoCL); there ``noise=0.05`` and ``covariance="iso"``.

    Example:
        >>> from protocl.heads import SharedPrior
        >>> head = BayesianPrototypes(prior=SharedPrior(precision=1.0), noise=0.5)
        >>> memory = head.new_memory(1).update(torch.tensor([[1.0], [3.0]]), torch.tensor([4, 9]))
        >>> [f"{p:.3f}" for p in head.fit(memory).probabilities(torch.tensor([[2.5]]))[0]]
        ['0.134', '0.866']
    """

    keeps_digits: ClassVar[bool] = True
    _centre: Tensor
    _noise: Tensor
    _total: Tensor

    def __init__(
        self,
        prior: Prior | Literal["auto"] = "auto",
        noise: float | Tensor | Literal["auto"] = "auto",
        *,
        covariance: Covariance = "iso",
        map: FeatureMap | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(dtype=dtype, map=map)
        require_choice("covariance", covariance, get_args(Covariance))
        if prior != "auto" and not isinstance(prior, Prior):
            raise ValueError(
                f"prior={prior!r}: expected 'auto' or a Prior; the variance of samples is noise=..."
            )
        if noise != "auto" if isinstance(noise, str) else noise is None:
            raise ValueError(f"noise={noise!r}: expected 'auto', a variance or a tensor of them")
        self.prior = prior
        self.noise = noise if isinstance(noise, str) else noise_of(noise, covariance)
        self.covariance: Covariance = covariance
        self._fitted_prior: Prior | None = None
        self._expected: tuple[Tensor, Unseen] | None = None  # for this noise
        self.required_level = "mean" if isinstance(self.noise, Tensor) else _LEVELS[covariance]

    # -- for users --------------------------------------------------------------------------

    def probabilities(self, features: Tensor) -> Tensor:
        """``p(y = c | z)``, ``(N, C)``, of ``features`` ``(N, D)``; the largest as predicted."""
        joint = self(features)
        chances = joint.softmax(dim=1)
        raise_winners_(chances, joint)
        return chances

    def log_density(self, features: Tensor) -> Tensor:
        """``log p(z)`` ``(N,)`` under all classes seen: low for samples of other classes."""
        return self(features).logsumexp(dim=1)

    @torch.no_grad()
    def unknown_probability(self, features: Tensor) -> Tensor:
        """Probability ``(N,)`` that a sample belongs to a class never seen.

        One more class, of which only the prior is known, competes with those of the memory.

        Raises:
            NotFittedError: :meth:`fit` has not been called.
            ValueError: the prior is flat, so that it gives no density.
        """
        known = self.log_density(features)
        assert self._fitted_prior is not None  # log_density refuses a head that is not fitted
        moved = self._moved(self._mapped(features))
        return unknown_probability(moved, known, self._unseen(self._fitted_prior), self._total)

    def _unseen(self, prior: Prior) -> Unseen:
        """What the prior says of one more class, which costs more than all questions after it."""
        if self._expected is None or self._expected[0] is not self._noise:  # fitted, or moved
            belief = prior.unseen(len(self._centre), self.covariance)
            belief = belief._replace(mean=belief.mean.to(self._centre.device) - self._centre)
            self._expected = self._noise, unseen_class(belief, self._noise)
        return self._expected[1]

    @torch.no_grad()
    def log_evidence(self, memory: PrototypeMemory) -> float:
        """``log p`` of all samples in ``memory``, by which priors and noises can be compared.

        Args:
            memory: of level ``diagonal`` or ``full``.

        Raises:
            ValueError: the covariance is ``"full"``, or the memory keeps no squares by class.
        """
        if self.covariance == "full":
            raise ValueError("log_evidence is implemented for covariance 'iso' and 'diag'")
        memory = memory.at_level("diagonal")
        noise = self._noise_for(memory)
        prior = self._prior_for(memory, noise)
        beliefs = prior.beliefs(memory.classes, memory.width, self.covariance)
        return float(log_evidence(beliefs, noise, memory.counts, memory.sums, memory.second_moment))

    def believed(self, memory: PrototypeMemory) -> tuple[Beliefs, Tensor, Prior]:
        """What is believed of the classes of ``memory``, the noise, and the prior behind."""
        noise = self._noise_for(memory)
        prior = self._prior_for(memory, noise)
        beliefs = prior.beliefs(memory.classes, memory.width, self.covariance)
        counts = memory.counts.to(torch.float64)
        return posterior(beliefs, noise, counts, memory.sums), noise, prior

    # -- from the memory to the classifier --------------------------------------------------

    def _fit(self, memory: PrototypeMemory) -> None:
        after, noise, prior = self.believed(memory)
        weights, means, scales = predictive(after, noise)
        # As in a CentredHead: float32 has too few digits for a small deviation from a large mean.
        self._set(_centre=means.mean(0), _noise=noise, _total=after.concentration.sum())
        self._set(_log_weights=weights, _means=means - self._centre, _scales=scales)
        self._fitted_prior = prior

    def _noise_for(self, memory: PrototypeMemory) -> Tensor:
        if isinstance(self.noise, Tensor):
            return noise_matrix(self.noise.to(memory.device), self.covariance, memory.width)
        return estimate_noise(memory, self.covariance)

    def _prior_for(self, memory: PrototypeMemory, noise: Tensor) -> Prior:
        return self.prior if isinstance(self.prior, Prior) else estimate_prior(memory, noise)

    def _logits(self, features: Tensor) -> Tensor:
        distribution = Predictive(*(getattr(self, f"_{name}") for name in Predictive._fields))
        return log_joint_in_pieces(self._moved(features), distribution)

    def _moved(self, features: Tensor) -> Tensor:
        return (features - self._centre).to(self.dtype)
