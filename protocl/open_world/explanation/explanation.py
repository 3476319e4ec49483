"""An answer with its reasons: nearest prototypes, nearest samples, and kinds of uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from protocl.heads.bayesian.head import BayesianPrototypes
from protocl.memory import PrototypeMemory
from protocl.memory.feature_maps import unit
from protocl.open_world.calibration import Verdict
from protocl.open_world.discovery.whitened import Whitened
from protocl.open_world.explanation.uncertainty import (
    Uncertainty,
    drawn_probabilities,
    uncertainty,
)


class NearPrototype(NamedTuple):
    """A class whose prototype took part in a decision.

    Attributes:
        label: of the class.
        share: of the decision, in [0, 1]: the calibrated probability that the head gives it. Those
            of all classes add up to one; None where nothing tells how sure the head is.
        behind: by how much its score is below the best, in the head's unit; 0 for the answer.
        distance: Euclidean, between sample and prototype under the head's map.
        samples: of which the prototype is the mean.
    """

    label: Any
    share: float | None
    behind: float
    distance: float
    samples: int


class NearSample(NamedTuple):
    """A stored sample that is near.

    Attributes:
        number: among the stored ones, from 0.
        label: its class.
        cosine: to the sample, under the head's map.
    """

    number: int
    label: Any
    cosine: float


class Explanation(NamedTuple):
    """Why a sample was answered so.

    Attributes:
        prototypes: that weigh most in the decision, the answer first.
        samples: nearest stored ones; empty where none are stored.
        total, aleatoric, epistemic: entropies of the answer in nats
            (:class:`.Uncertainty`); None where nothing tells them.
        unknown: probability that it belongs to no known class, or, by a score, the share of known
            samples that score higher; None where nothing tells.
        verdict: by a score; None where the model uses none.
    """

    prototypes: list[NearPrototype]
    samples: list[NearSample]
    total: float | None
    aleatoric: float | None
    epistemic: float | None
    unknown: float | None
    verdict: Verdict | None = None


def nearest_samples(
    mapped: Tensor, stored: Tensor, labels: Sequence[Any], top: int
) -> list[list[NearSample]]:
    """The nearest stored samples of each, by cosine.

    Args:
        mapped: ``(N, W)`` under a map.
        stored: ``(M, W)`` under the same.
        labels: of the stored ones.
        top: how many.
    """
    cosines, numbers = (unit(mapped) @ unit(stored).T).topk(min(top, len(stored)))
    return [
        [NearSample(n, labels[n], cosine) for n, cosine in zip(row, near, strict=True)]
        for row, near in zip(numbers.tolist(), cosines.tolist(), strict=True)
    ]


class PrototypeUncertainty:
    """Uncertainties of answers by the posterior of the class means.

    Samples are compared where the covariance within classes, shrunk, is the identity.

    Args:
        memory: of level ``shared`` or ``full``, with a class of two samples.
        shrinkage: see :class:`.Whitened`.

    Raises:
        ValueError: the memory keeps too little.
    """

    def __init__(self, memory: PrototypeMemory, shrinkage: float = 0.1) -> None:
        self.space = Whitened.of(memory, shrinkage, unit_length=False)
        self.memory = self.space.statistics(memory)
        self.head = BayesianPrototypes(noise=1.0, dtype=torch.float64)

    def __call__(self, features: Tensor, *, draws: int = 50, seed: int = 0) -> Uncertainty:
        """Uncertainties ``(N,)`` of features ``(N, D)``."""
        moved = self.space(features.double())
        return uncertainty(
            drawn_probabilities(self.head, self.memory, moved, draws=draws, seed=seed)
        )
