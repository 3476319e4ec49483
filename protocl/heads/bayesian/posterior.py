"""A posterior over prototypes that is updated while the features are being learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional

from protocl.heads.bayesian.conjugate import (
    Predictive,
    log_joint,
    log_joint_in_pieces,
    posterior,
    predictive,
    unknown_probability,
    unseen_class,
)
from protocl.heads.bayesian.noise import noise_matrix, noise_of
from protocl.heads.bayesian.priors import Beliefs, Covariance, Prior
from protocl.memory import PrototypeMemory
from protocl.memory.batch import check_batch
from protocl.memory.buffers import FollowsDevice, outside_inference_mode
from protocl.memory.rows import find_rows
from protocl.memory.summation import all_finite


class ConjugatePosterior(FollowsDevice):
    """Sequential Bayes over class means, with a loss that trains what computes the features.

    Kept are effective counts and sums in float64 besides the prior of each class, so that the
    posterior is exact whatever the order, its difference to the prior can be merged with that of
    others, and old evidence can be discounted. For features that stay put,
    :class:`protocl.PrototypeMemory` with :class:`BayesianPrototypes` is the better choice: its
    counts are exact integers, and samples can be taken out again.

    Args:
        feature_dim: ``D``.
        prior: belief about each class before its first sample.
        noise: known variance of samples around their class mean: a number, ``(D,)`` or ``(D, D)``;
            a number holds for every form of ``covariance``.
        covariance: ``"iso"``, ``"diag"`` or ``"full"``.

    Source: Kessler et al. 2023, "On sequential Bayesian inference for continual learning",
    section 7.
    """

    noise: Tensor
    class_ids: Tensor
    counts: Tensor
    sums: Tensor
    prior_concentration: Tensor
    prior_mean: Tensor
    prior_precision: Tensor

    @outside_inference_mode
    def __init__(
        self,
        feature_dim: int,
        prior: Prior,
        noise: float | Tensor = 0.05,
        *,
        covariance: Covariance = "iso",
    ) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.prior = prior
        self.covariance: Covariance = covariance
        given = noise_of(noise, covariance)
        self.register_buffer("noise", noise_matrix(given, covariance, feature_dim))
        none = torch.zeros(0, dtype=torch.int64)
        beliefs = Beliefs(*(torch.zeros(0, dtype=torch.float64) for _ in Beliefs._fields))
        self._set(none, torch.zeros(0, dtype=torch.float64), torch.zeros(0, feature_dim), beliefs)

    def __len__(self) -> int:
        return len(self.class_ids)

    def __bool__(self) -> bool:
        """Always true: a posterior without classes is still a posterior."""
        return True

    # -- evidence ---------------------------------------------------------------------------

    @outside_inference_mode
    @torch.no_grad()
    def add_classes(self, class_ids: Tensor) -> Self:
        """Let ``class_ids`` ``(K,)`` take part with their prior; those known already stay."""
        device = self.class_ids.device
        new = torch.unique(class_ids.to(device))
        new = new[~torch.isin(new, self.class_ids)]
        if len(new) == 0:
            return self
        fresh = self.prior.beliefs(new, self.feature_dim, self.covariance)
        ids = torch.cat([self.class_ids, new])
        order = ids.argsort()
        known = self.prior_beliefs() if len(self) else Beliefs(*(f[:0] for f in fresh))
        beliefs = Beliefs(*(torch.cat(parts)[order] for parts in zip(known, fresh, strict=True)))
        zeros = torch.zeros(len(new), self.feature_dim, dtype=torch.float64, device=device)
        counts = torch.cat([self.counts, zeros[:, 0]])[order]
        self._set(ids[order], counts, torch.cat([self.sums, zeros])[order], beliefs)
        return self

    @outside_inference_mode
    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> Self:
        """Add the samples of a batch: ``features`` ``(N, D)`` with ``labels`` ``(N,)``.

        Raises:
            TypeError, ValueError: types or shapes do not fit, a feature is not finite, or a class
                was not added; on an accelerator the last two are assertions on the device.
        """
        check_batch(features, labels, self.feature_dim)
        _require_finite(features.detach())
        rows = self.rows_of(labels)
        self.counts.index_add_(0, rows, torch.ones_like(rows, dtype=torch.float64))
        self.sums.index_add_(0, rows, features.detach().to(self.sums))
        return self

    @outside_inference_mode
    @torch.no_grad()
    def merge(self, other: ConjugatePosterior) -> Self:
        """Add what another posterior learned beyond the same prior.

        Raises:
            ValueError: noise, width or the prior of a common class differ.
        """
        if self.noise.shape != other.noise.shape or not torch.equal(
            self.noise, other.noise.to(self.noise.device)
        ):
            raise ValueError("cannot merge posteriors of different noise")
        self.add_classes(other.class_ids)
        rows = self.rows_of(other.class_ids)
        for mine, theirs in zip(self.prior_beliefs(), other.prior_beliefs(), strict=True):
            if not torch.equal(mine[rows], theirs.to(mine.device)):
                raise ValueError("cannot merge posteriors that started from different priors")
        self.counts.index_add_(0, rows, other.counts.to(self.counts.device))
        self.sums.index_add_(0, rows, other.sums.to(self.sums.device))
        return self

    @outside_inference_mode
    @torch.no_grad()
    def discount(self, factor: float) -> Self:
        """Let all evidence so far weigh ``factor`` of what it did; 0 returns to the prior."""
        self.counts.mul_(factor)
        self.sums.mul_(factor)
        return self

    @outside_inference_mode
    @torch.no_grad()
    def replace(self, memory: PrototypeMemory) -> Self:
        """Return to the prior, then take the evidence of ``memory`` alone."""
        self.discount(0.0)
        self.add_classes(memory.classes)
        rows = self.rows_of(memory.classes)
        self.counts[rows] = memory.counts.to(self.counts)
        self.sums[rows] = memory.sums.to(self.sums)
        return self

    # -- what follows from it ---------------------------------------------------------------

    def rows_of(self, labels: Tensor) -> Tensor:
        """Rows ``(N,)`` of classes ``(N,)``.

        Raises:
            ValueError: a class was not added.
        """
        return find_rows(self.class_ids, labels.to(self.class_ids.device))

    def prior_beliefs(self) -> Beliefs:
        """Beliefs before any sample."""
        return Beliefs(self.prior_concentration, self.prior_mean, self.prior_precision)

    def beliefs(self) -> Beliefs:
        """Beliefs after all samples so far."""
        return posterior(self.prior_beliefs(), self.noise, self.counts, self.sums)

    def predictive(self) -> Predictive:
        """Distribution of the next sample and its class."""
        return predictive(self.beliefs(), self.noise)

    def log_joint(self, features: Tensor) -> Tensor:
        """``log p(z, y = c)``, ``(N, C)``; columns are those of ``class_ids``."""
        return log_joint(features, self.predictive())

    @torch.no_grad()
    def answer(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """``log_joint`` of the classes that have samples, ``(N, C)``, and their ids ``(C,)``."""
        classes, distribution = self.seen()
        return log_joint_in_pieces(features, distribution), classes

    def seen(self) -> tuple[Tensor, Predictive]:
        """Ids ``(C,)`` of the classes that have samples, and the distribution of their next one."""
        seen = self.counts > 0
        beliefs = Beliefs(*(part[seen] for part in self.beliefs()))
        return self.class_ids[seen], predictive(beliefs, self.noise)

    def unknown_probability(self, features: Tensor) -> Tensor:
        """Probability ``(N,)`` that a sample belongs to a class never seen.

        Raises:
            ValueError: the prior is flat, so that it gives no density.
        """
        joint, _ = self.answer(features)
        unseen = self.prior.unseen(self.feature_dim, self.covariance)
        total = self.beliefs().concentration[self.counts > 0].sum()
        return unknown_probability(
            features, joint.logsumexp(1), unseen_class(unseen, self.noise), total
        )

    def loss(
        self,
        features: Tensor,
        labels: Tensor,
        objective: Literal["conditional", "joint"] = "conditional",
    ) -> Tensor:
        """Mean of ``-log p(y | z)``, with a gradient to the features and none to the posterior.

        Args:
            features: ``(N, D)``.
            labels: ``(N,)``.
            objective: ``"joint"`` for ``-log p(z, y)``, eq. 18 read literally, which is lowest
                when all features are one point.
        """
        joint = self.log_joint(features)
        rows = self.rows_of(labels)
        if objective == "joint":
            return -joint.gather(1, rows[:, None]).mean()
        return functional.cross_entropy(joint, rows)

    # -- state ------------------------------------------------------------------------------

    def _set(self, ids: Tensor, counts: Tensor, sums: Tensor, beliefs: Beliefs) -> None:
        self.register_buffer("class_ids", ids)
        self.register_buffer("counts", counts)
        self.register_buffer("sums", sums.to(torch.float64))
        for name, value in beliefs._asdict().items():
            self.register_buffer(f"prior_{name}", value.clone())

    @outside_inference_mode
    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # The number of classes is part of the state, so buffers take the saved shape.
        for name, buffer in list(self.named_buffers(recurse=False)):
            if f"{prefix}{name}" in state_dict:
                saved = state_dict[f"{prefix}{name}"]
                self.register_buffer(name, torch.empty_like(saved, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _require_finite(features: Tensor) -> None:
    """Refuse NaN and infinity, on an accelerator without waiting for it in each training step."""
    if features.device.type != "cpu":
        torch._assert_async(torch.isfinite(features).all())
    elif not all_finite(features):
        raise ValueError("features hold NaN or infinite values: expected finite numbers")
