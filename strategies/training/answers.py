"""What trained prototypes and posteriors answer, in the form that a model on disk keeps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from protocl.heads.bayesian.conjugate import Predictive, log_joint_in_pieces
from protocl.model.answers import Answer
from protocl.strategies.training.contrastive import cosine_similarities
from protocl.strategies.training.distances import distances, squared_distances


class PrototypeAnswer(Answer):
    """Cosine, or negative distance, to one prototype a class, divided by a temperature.

    Args:
        metric: ``"cosine"`` or ``"distance"``.
        temperature: divides the scores.
        unit_length: divide features by their norm first.

    Attributes:
        prototypes: ``(C, D)``.
    """

    settings = ("metric", "temperature", "unit_length")
    prototypes: Tensor

    def __init__(
        self,
        metric: Literal["cosine", "distance"] = "cosine",
        temperature: float = 1.0,
        unit_length: bool = False,
    ) -> None:
        super().__init__()
        self.metric = metric
        self.temperature = temperature
        self.unit_length = unit_length

    def forward(self, features: Tensor) -> Tensor:
        """Scores ``(N, C)`` of features ``(N, D)``."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.prototypes.dtype)
            features = functional.normalize(features, dim=1) if self.unit_length else features
            if self.metric == "distance":
                scores = -distances(squared_distances(features, self.prototypes))
            else:
                scores = cosine_similarities(features, self.prototypes)
            return scores / self.temperature


class GaussianAnswer(Answer):
    """``log p(z, y = c)`` of classes whose samples follow the predictive distribution of ProtoCL.

    Attributes:
        log_weights, means, scales: the fields of :class:`.Predictive`.
    """

    log_weights: Tensor
    means: Tensor
    scales: Tensor

    @classmethod
    def of(cls, classes: Tensor, predictive: Predictive) -> GaussianAnswer:
        """The answer by the distributions of ``classes`` ``(C,)``."""
        return cls().hold(classes=classes, **predictive._asdict())

    def forward(self, features: Tensor) -> Tensor:
        """Scores ``(N, C)`` of features ``(N, D)``."""
        predictive = Predictive(*(getattr(self, name) for name in Predictive._fields))
        return log_joint_in_pieces(features, predictive)
