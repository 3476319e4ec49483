"""What every score of unknown inputs has in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from protocl.config.validation import is_number
from protocl.heads.covariance.shrinkage import whitening
from protocl.memory import PrototypeMemory
from protocl.memory.estimates.shrinkage import oas_shrinkage, shrink_towards_identity
from protocl.open_world.fitted import Fitted, as_shared

Shrinkage = float | Literal["auto"]


class Score(Fitted):
    """How well known a sample looks, by the statistics of the known classes.

    A subclass implements :meth:`_fit` and :meth:`_known`, and is registered under the entry-point
    group ``protocl.scores``. No score is trained, and none sees an unknown sample. A threshold
    makes a decision of it (:mod:`protocl.open_world.thresholds`).
    """

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """Scores ``(N,)`` float64, high for known, of features ``(N, D)``.

        Raises:
            NotFittedError: :meth:`fit` has not been called.
            ValueError: a feature is NaN or infinite, or the width does not fit.
        """
        return self._known(self._mapped(features))

    @abstractmethod
    def _known(self, mapped: Tensor) -> Tensor:
        """Scores ``(N,)`` of samples ``(N, W)`` under the map of the memory."""


class CovarianceScore(Score):
    """A score that rests on the covariance of samples around their class means.

    Args:
        shrinkage: weight of the scaled identity in the covariance, from 0 to 1, or ``"auto"`` for
            the oracle approximating shrinkage estimator. With hardly more samples than features
            it must not be 0: what is inverted would be noise.
    """

    required_level = "shared"

    def __init__(self, shrinkage: Shrinkage = 0.3) -> None:
        super().__init__()
        if shrinkage != "auto" and not (is_number(shrinkage) and 0 <= shrinkage <= 1):
            raise ValueError(
                f"shrinkage={shrinkage!r}: expected 'auto' or a number between 0 and 1"
            )
        self.shrinkage = shrinkage

    def _whitening(self, memory: PrototypeMemory) -> Tensor:
        """``A`` ``(W, W)`` with ``A^T A`` the inverse of the shrunk covariance within classes."""
        shared = as_shared(memory)
        return self._half(shared.scatter() / memory.total, memory.total)

    def _half(self, covariance: Tensor, samples: int) -> Tensor:
        weight = self.shrinkage
        if weight == "auto":
            weight = oas_shrinkage(covariance, samples)
        return whitening(shrink_towards_identity(covariance, weight, scaled=True)[None])[0]


def centre_of(memory: PrototypeMemory) -> Tensor:
    """Mean ``(W,)`` of all samples."""
    return memory.sums.sum(0) / memory.total
