"""Objective ``cosine``: tell the base classes apart by the cosine to a vector of each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from protocl.config.validation import AT_LEAST_1, BELOW_1, POSITIVE, ranged
from protocl.pretraining.config import Drawn, ObjectiveConfig


@dataclass
class CosineConfig(ObjectiveConfig):
    """Settings of :class:`CosineObjective`.

    Attributes:
        batch_size: images in a step.
        scale: factor of the cosines in the softmax (an inverse temperature).
        margin: taken from the cosine to the true class (CosFace), in [0, 1).
        label_smoothing: share of the target spread over all classes, in [0, 1).
    """

    name: str = "cosine"
    batch_size: int = ranged(256, AT_LEAST_1)
    scale: float = ranged(20.0, POSITIVE)
    margin: float = ranged(0.0, BELOW_1)
    label_smoothing: float = ranged(0.0, BELOW_1)

    def build(self, feature_dim: int, n_classes: int) -> CosineObjective:
        """See :class:`protocl.pretraining.config.ObjectiveConfig`."""
        return CosineObjective(self, feature_dim, n_classes)


class CosineObjective(nn.Module):
    """Cross-entropy over ``scale * cos(f, w_c)``, with one vector ``w_c`` for each class.

    Source: Gidaris & Komodakis, Dynamic few-shot visual learning without forgetting, CVPR 2018,
    section 3.2; the margin: Wang et al., CosFace, CVPR 2018, equation 4.

    Args:
        config: settings.
        feature_dim: width of the features.
        n_classes: number of classes, orientations included.
    """

    def __init__(self, config: CosineConfig, feature_dim: int, n_classes: int) -> None:
        super().__init__()
        self.config = config
        vectors = torch.randn(n_classes, feature_dim)
        self.vectors = nn.Parameter(functional.normalize(vectors, dim=1))

    def batches(self, labels: Tensor, generator: torch.Generator) -> Drawn:
        """Every sample once, in random order; the last incomplete batch is left out."""
        order = torch.randperm(len(labels), generator=generator)
        size = min(self.config.batch_size, len(labels))
        for rows in order[: len(order) // size * size].split(size):
            yield rows, labels[rows]

    def batches_per_epoch(self, labels: Tensor) -> int:
        """See :class:`protocl.pretraining.config.Objective`."""
        return math.floor(len(labels) / min(self.config.batch_size, len(labels)))

    def loss(self, features: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of features ``(B, D)`` with class rows ``(B,)``."""
        vectors = functional.normalize(self.vectors, dim=1)
        logits = self.config.scale * (functional.normalize(features, dim=1) @ vectors.T).float()
        if self.config.margin:
            own = targets[:, None]
            penalty = torch.full_like(logits[:, :1], -self.config.scale * self.config.margin)
            logits = logits.scatter_add(1, own, penalty)
        return functional.cross_entropy(
            logits, targets, label_smoothing=self.config.label_smoothing
        )
