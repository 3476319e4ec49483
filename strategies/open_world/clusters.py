"""Centres that outlive an experience, and the clusters that an epoch contrasts samples with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from protocl.strategies.exemplar_free.growing_parameters import GrowingParameters
from protocl.strategies.open_world.density import density_temperatures


class Centres(GrowingParameters):
    """Directions of classes and categories.

    Attributes:
        points: ``(K, D)`` of unit length.
        ids: ``(K,)``.
    """

    points: Tensor
    ids: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("points", torch.zeros(0, 0))
        self.register_buffer("ids", torch.zeros(0, dtype=torch.int64))

    def replace(self, ids: Tensor, points: Tensor, gone: Tensor) -> None:
        """Put centres ``(K, D)`` in the place of those of the same ids, and of ``gone`` ones."""
        old = ~torch.isin(self.ids.to(ids.device), torch.cat([ids, gone.to(ids.device)]))
        kept = self.points.to(points)[old] if len(self.ids) else points[:0]
        self.points = torch.cat([kept, points])
        self.ids = torch.cat([self.ids.to(ids.device)[old], ids])


class Clusters(NamedTuple):
    """What an epoch contrasts samples with.

    Attributes:
        ids: ``(K,)`` of the clusters.
        points: ``(K, D)`` of unit length.
        temperatures: ``(K,)``.
        of_unlabelled: ``(N,)`` row of the cluster of each unlabelled sample; -1 for those of other
            experiences.
    """

    ids: Tensor
    points: Tensor
    temperatures: Tensor
    of_unlabelled: Tensor

    def of(self, labels: Tensor) -> Tensor:
        """Rows ``(N,)`` of the clusters of classes ``(N,)``; -1 where there is none."""
        same = labels[:, None] == self.ids
        return torch.where(same.any(1), same.int().argmax(1), -1)

    def at_temperature(self, samples: Tensor, rows: Tensor, temperature: float) -> Clusters:
        """The same, each at a temperature that follows how wide it is.

        Args:
            samples: ``(N, D)`` of unit length, labelled and not.
            rows: ``(N,)`` of their clusters.
            temperature: mean over the clusters.
        """
        gaps = (samples - self.points[rows]).norm(dim=1)
        heat = density_temperatures(gaps, rows, len(self.ids), temperature)
        return self._replace(temperatures=heat)
