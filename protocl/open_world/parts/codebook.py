"""Which part of its class a sample is: nearest of the class's centres, the same for everybody."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.memory.estimates.subsamples import SubSamples
from protocl.open_world.discovery.k_means import SemiSupervisedKMeans


@dataclass(frozen=True, eq=False)
class Codebook:
    """Centres of the parts of each class.

    Part ``j`` of class ``c`` has the id ``J c + j`` (:class:`.SubSamples`), so that memories,
    messages and ledgers take parts as they take classes. Statistics of several clients add up
    where they have the same codebook. The class's own row is the sum of those of its parts.

    Attributes:
        groups: how ids of parts are made of those of classes; ``J`` is its ``number``.
        ids: ``(P,)`` ids of the parts, ascending; a class of few samples has fewer than ``J``.
        centres: ``(P, W)`` float64, in the space of the memory.
    """

    groups: SubSamples
    ids: Tensor
    centres: Tensor

    @property
    def classes(self) -> Tensor:
        """``(P,)`` class of each part."""
        return self.groups.parents(self.ids)

    def parts_of(self, mapped: Tensor, labels: Tensor) -> Tensor:
        """The part ``(N,)`` that each sample of a class is nearest to.

        Args:
            mapped: ``(N, W)`` samples under the memory's map.
            labels: ``(N,)`` their classes.

        Raises:
            KeyError: the codebook lacks a class.
        """
        unknown = set(labels.tolist()) - set(self.classes.tolist())
        if unknown:
            raise KeyError(f"classes {sorted(unknown)} are not in the codebook")
        found = torch.empty_like(labels, dtype=torch.int64)
        for class_id in labels.unique():
            rows, own = labels == class_id, self.classes == class_id
            gaps = torch.cdist(mapped[rows].double(), self.centres[own])
            found[rows] = self.ids[own][gaps.argmin(1)]
        return found

    def beside(self, other: Codebook) -> Codebook:
        """The parts of both, which are of different classes.

        Raises:
            ValueError: some class has parts in both, or they number parts differently.
        """
        if shared := set(self.classes.tolist()) & set(other.classes.tolist()):
            raise ValueError(f"classes {sorted(shared)} have parts in both codebooks")
        if self.groups.number != other.groups.number:
            raise ValueError(
                f"codebooks of {self.groups.number} and {other.groups.number} parts a class "
                "number them differently: make both with one number"
            )
        ids, order = torch.cat([self.ids, other.ids]).sort()
        return Codebook(self.groups, ids, torch.cat([self.centres, other.centres])[order])

    def update(self, memory: PrototypeMemory, features: Tensor, labels: Tensor) -> PrototypeMemory:
        """Add samples ``(N, D)`` of classes ``(N,)`` to the rows of their parts."""
        return memory.update(features, self.parts_of(memory.feature_map(features), labels))

    def whole(self, memory: PrototypeMemory) -> PrototypeMemory:
        """The statistics by class: parts added up.

        Args:
            memory: rows of parts, of level ``mean``, ``diagonal`` or ``full``, or ``shared``, whose
                second moment belongs to all rows.
        """
        total = memory.empty_like()
        if memory.level == "shared":
            return _pooled(memory, self.groups)
        for part in memory.classes:
            total.merge(memory.subset(part).relabelled(self.groups.parents(part[None])))
        return total


def learn_codebook(
    like: PrototypeMemory,
    features: Tensor,
    labels: Tensor,
    parts: int = 16,
    *,
    restarts: int = 3,
    spherical: bool = False,
    seed: int = 0,
) -> Codebook:
    """Divide each class into parts by k-means in the space of a memory.

    The idea of PALM (Lu et al., ICLR 2024), a mixture of prototypes a class, after the fact: no
    network is trained.

    Args:
        like: gives the map.
        features: ``(N, D)``.
        labels: ``(N,)``.
        parts: of each class, at most as many as it has samples.
        restarts, spherical, seed: see :class:`.SemiSupervisedKMeans`.

    Raises:
        ValueError: ``parts`` is not positive, or there are no samples.
        OverflowError: a class id is too large for parts.
    """
    groups = SubSamples(parts)
    groups(features, labels)  # refuses ids without room for parts
    if not len(labels):
        raise ValueError("there are no samples to learn parts from")
    mapped = like.feature_map(features)
    nothing = PrototypeMemory(mapped.shape[1])
    ids, centres = [], []
    for class_id in labels.unique().tolist():
        own = mapped[labels == class_id]
        means = SemiSupervisedKMeans(
            min(parts, len(own)), restarts=restarts, spherical=spherical, seed=seed
        )
        found = means.fit(nothing, own).centres
        ids.append(found.ids + class_id * parts)
        centres.append(found.points)
    return Codebook(groups, torch.cat(ids), torch.cat(centres))


def _pooled(memory: PrototypeMemory, groups: SubSamples) -> PrototypeMemory:
    """Parts added up where one second moment belongs to all."""
    parents, rows = groups.parents(memory.classes).unique(return_inverse=True)
    sums = memory.sums.new_zeros(len(parents), memory.width).index_add_(0, rows, memory.sums)
    counts = torch.zeros_like(parents).index_add_(0, rows, memory.counts)
    return PrototypeMemory.from_statistics(
        memory, classes=parents, counts=counts, sums=sums, second_moment=memory.second_moment
    )
