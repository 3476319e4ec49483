"""Objective ``episodes``: prototypical networks' training by few-shot episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from protocl.config.validation import AT_LEAST_1, POSITIVE, ranged
from protocl.errors import ConfigError, DataError
from protocl.memory.precision import in_full_precision
from protocl.pretraining.config import Drawn, ObjectiveConfig


@dataclass
class EpisodesConfig(ObjectiveConfig):
    """Settings of :class:`EpisodesObjective`.

    Attributes:
        ways: classes in an episode.
        shots: support images of each, whose mean is the prototype.
        queries: images of each that are to be classified.
        distance: ``"euclidean"`` (squared) or ``"cosine"``.
        temperature: divides the negative distances (or cosines) in the softmax.
        episodes_per_epoch: steps between two checkpoints.
    """

    name: str = "episodes"
    ways: int = ranged(60, AT_LEAST_1)
    shots: int = ranged(5, AT_LEAST_1)
    queries: int = ranged(5, AT_LEAST_1)
    distance: Literal["euclidean", "cosine"] = "euclidean"
    temperature: float = ranged(1.0, POSITIVE)
    episodes_per_epoch: int = ranged(100, AT_LEAST_1)

    def build(self, feature_dim: int, n_classes: int) -> EpisodesObjective:
        """See :class:`protocl.pretraining.config.ObjectiveConfig`.

        Raises:
            ConfigError: there are fewer classes than ways.
        """
        if self.ways > n_classes:
            raise ConfigError(
                f"objective.ways={self.ways}: expected at most the {n_classes} base classes"
            )
        return EpisodesObjective(self)


class EpisodesObjective(nn.Module):
    """Cross-entropy of queries over ``-d(f, prototype) / temperature`` within an episode.

    Source: Snell et al., Prototypical Networks for Few-shot Learning, 2017, algorithm 1.

    Args:
        config: settings.
    """

    def __init__(self, config: EpisodesConfig) -> None:
        super().__init__()
        self.config = config

    def batches(self, labels: Tensor, generator: torch.Generator) -> Drawn:
        """Episodes: ``ways`` classes, of each ``shots + queries`` samples in succession.

        Raises:
            DataError: a class has fewer samples than that.
        """
        size = self.config.shots + self.config.queries
        counts = torch.bincount(labels)
        if int(counts.min()) < size:
            raise DataError(
                f"class row {int(counts.argmin())} has {int(counts.min())} samples; an episode "
                f"takes {size} of each class (objective.shots + objective.queries)"
            )
        by_class = labels.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        for _ in range(self.config.episodes_per_epoch):
            classes = torch.randperm(len(counts), generator=generator)[: self.config.ways]
            picks = [
                starts[c] + torch.randperm(int(counts[c]), generator=generator)[:size]
                for c in classes
            ]
            rows = by_class[torch.cat(picks)]
            yield rows, labels[rows]

    def batches_per_epoch(self, labels: Tensor) -> int:
        """See :class:`protocl.pretraining.config.Objective`."""
        return self.config.episodes_per_epoch

    @in_full_precision
    def loss(self, features: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of the queries among ``(ways * (shots + queries), D)`` features."""
        ways, shots, queries = self.config.ways, self.config.shots, self.config.queries
        features = features.view(ways, shots + queries, -1)
        prototypes = features[:, :shots].mean(1)
        asked = features[:, shots:].flatten(0, 1)
        own = torch.arange(ways, device=features.device).repeat_interleave(queries)
        return functional.cross_entropy(
            self._similarities(asked, prototypes) / self.config.temperature, own
        )

    def _similarities(self, asked: Tensor, prototypes: Tensor) -> Tensor:
        if self.config.distance == "cosine":
            return functional.normalize(asked, dim=1) @ functional.normalize(prototypes, dim=1).T
        return -torch.cdist(asked, prototypes).square()
