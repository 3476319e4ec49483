"""What is believed about a class before its first sample."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Covariance = Literal["iso", "diag", "full"]
"""Covariances as one number, as ``(D,)`` variances, or as a ``(D, D)`` matrix."""

DEFAULT_CONCENTRATION = math.exp(0.78)
"""ProtoCL's; its code sets ``log alpha = 0.78``."""


class Beliefs(NamedTuple):
    """Belief about each class: ``p ~ Dir(concentration)``, ``mean_c ~ N(mean, precision^-1)``.

    Attributes:
        concentration: ``(C,)``.
        mean: ``(C, D)``.
        precision: ``(C, 1)``, ``(C, D)`` or ``(C, D, D)``.
    """

    concentration: Tensor
    mean: Tensor
    precision: Tensor


def is_flat(beliefs: Beliefs) -> bool:
    """Whether a mean is believed to be anywhere, so that a sample has no density before data."""
    precision = beliefs.precision
    variances = precision.diagonal(dim1=1, dim2=2) if precision.ndim == 3 else precision
    return not bool((variances > 0).all())


class Prior(ABC):
    """Gives each class id its belief, whatever ids were asked for before."""

    @abstractmethod
    def beliefs(self, class_ids: Tensor, feature_dim: int, covariance: Covariance) -> Beliefs:
        """Beliefs about ``class_ids`` ``(C,)`` in float64, on their device."""

    @abstractmethod
    def unseen(self, feature_dim: int, covariance: Covariance) -> Beliefs:
        """Belief about a class of which nothing is known, not even its id; one row."""


@dataclass(frozen=True, eq=False)
class SharedPrior(Prior):
    """A prior with one belief about the mean of every class.

    Args:
        concentration: parameter of the Dirichlet distribution for each class, > 0.
        mean: a number, or ``(D,)``.
        precision: a number, ``(D,)`` for ``"diag"`` or ``(D, D)`` for ``"full"``. 0 is the flat
            prior, under which a class must have samples before it can be predicted.
    """

    concentration: float = DEFAULT_CONCENTRATION
    mean: float | Tensor = 0.0
    precision: float | Tensor = 1.0

    def __post_init__(self) -> None:
        if not self.concentration > 0:
            raise ValueError(f"concentration={self.concentration}: expected a number > 0")
        precision = torch.as_tensor(self.precision)
        variances = precision.diagonal() if precision.ndim == 2 else precision
        if bool((variances < 0).any()):
            raise ValueError(f"precision={self.precision}: expected numbers >= 0")

    def beliefs(self, class_ids: Tensor, feature_dim: int, covariance: Covariance) -> Beliefs:
        return _rows(self, len(class_ids), feature_dim, covariance, class_ids.device)

    def unseen(self, feature_dim: int, covariance: Covariance) -> Beliefs:
        return _rows(self, 1, feature_dim, covariance, torch.device("cpu"))


@dataclass(frozen=True, eq=False)
class ClassPriors(Prior):
    """A belief of its own about each of the class ids ``0 ... K - 1``.

    Args:
        concentration: ``(K,)``.
        mean: ``(K, D)``.
        precision: ``(K,)`` for ``"iso"``, ``(K, D)`` for ``"diag"``, ``(K, D, D)`` for ``"full"``.
    """

    concentration: Tensor
    mean: Tensor
    precision: Tensor

    def beliefs(self, class_ids: Tensor, feature_dim: int, covariance: Covariance) -> Beliefs:
        unknown = class_ids[class_ids >= len(self.mean)].tolist()
        if unknown:
            raise ValueError(f"no prior for classes {unknown}: there are {len(self.mean)} rows")
        concentration, mean, precision = (
            part.to(class_ids.device, torch.float64)[class_ids]
            for part in (self.concentration, self.mean, self.precision)
        )
        return Beliefs(
            concentration, mean, precision[:, None] if precision.ndim == 1 else precision
        )

    def unseen(self, feature_dim: int, covariance: Covariance) -> Beliefs:
        raise ValueError("ClassPriors say nothing of further classes: use SharedPrior")


@dataclass(frozen=True)
class RandomPrior(Prior):
    """ProtoCL's initial values: precision ``exp(e)``, mean ``q / precision`` for normal ``e, q``.

    They depend on the seed and the class id alone, so that federated clients, and runs that meet
    the classes in another order, start from the same prior.

    Args:
        seed: of the draws.
        concentration: of each class.

    Source: the authors' code (``skezle/bayes_cl_posterior``).
    """

    seed: int = 0
    concentration: float = DEFAULT_CONCENTRATION

    def beliefs(self, class_ids: Tensor, feature_dim: int, covariance: Covariance) -> Beliefs:
        draws = torch.stack([self._draw(class_id, feature_dim) for class_id in class_ids.tolist()])
        draws = draws.to(class_ids.device)
        precision = draws[:, :1].exp()
        shared = SharedPrior(self.concentration)
        rows = shared.beliefs(class_ids, feature_dim, covariance)
        scale = precision[:, :, None] if covariance == "full" else precision
        return Beliefs(rows.concentration, draws[:, 1:] / precision, rows.precision * scale)

    def _draw(self, class_id: int, feature_dim: int) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + class_id) % 2**63)
        return torch.randn(1 + feature_dim, generator=generator, dtype=torch.float64)

    def unseen(self, feature_dim: int, covariance: Covariance) -> Beliefs:
        return SharedPrior(self.concentration).unseen(feature_dim, covariance)


def _rows(
    prior: SharedPrior, count: int, width: int, covariance: Covariance, device: torch.device
) -> Beliefs:
    """``count`` equal rows."""
    mean = torch.as_tensor(prior.mean, dtype=torch.float64, device=device)
    precision = torch.as_tensor(prior.precision, dtype=torch.float64, device=device)
    if covariance == "full" and precision.ndim < 2:
        precision = precision * torch.eye(width, dtype=torch.float64, device=device)
    shape = {"iso": (1,), "diag": (width,), "full": (width, width)}[covariance]
    return Beliefs(
        torch.full((count,), prior.concentration, dtype=torch.float64, device=device),
        mean.expand(count, width),
        precision.expand(count, *shape),
    )
