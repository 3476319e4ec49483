"""What of groups' means can be added up: sums, a moment of the means, and how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from protocl.memory.estimates.group_moments import GroupMoments, warn_of_single_groups
from protocl.memory.estimates.subsamples import SubSamples
from protocl.memory.memory import PrototypeMemory


@dataclass(frozen=True)
class GroupSums:
    """Statistics of groups that add, of which comes what :class:`.GroupMoments` estimates.

    With the sum ``s_g`` of the ``n_g`` samples of each of the ``Q_c`` groups of class ``c``, the
    spread of their means is ``T_c = M_c - s_c s_c^T / n_c`` with ``M_c = sum_g s_g s_g^T / n_g``.
    So ``M_c``, ``n_c``, ``s_c`` and ``Q_c`` of several places add up to those of all groups in one.
    They travel as a memory: class ``2 c`` has ``n_c``, ``s_c`` and ``M_c`` in the place of a second
    moment, class ``2 c + 1`` has the count ``Q_c`` and zeros.

    In fixed point, ``M_c`` of each memory is rounded once to the unit of second moments (the step
    squared), so that sums are the same bits in any order. Half a unit for each of the ``W``
    features is added to its diagonal first, that no spread gets a negative direction by rounding.
    So what comes out differs from the estimate by single means by less than ``W`` units a memory
    and class, times the class's weight, and the rounding of float64 where means are far from the
    origin.

    Args:
        subsamples: how clients deal their classes into groups.
        weights: see :meth:`.GroupMoments.memory`; with ``samples`` a moment of each class is kept,
            ``(C, W, W)``, with ``groups`` one for all.
    """

    subsamples: SubSamples = field(default_factory=SubSamples)
    weights: Literal["samples", "groups"] = "samples"

    means = 2
    """Ids of each class."""

    def kind(self, empty: PrototypeMemory) -> PrototypeMemory:
        """A memory without samples of the kind that :meth:`__call__` gives for those like it."""
        return PrototypeMemory(
            empty.feature_dim, "full" if self.weights == "samples" else "shared",
            feature_map=empty.feature_map, exact=empty.exact, step=empty.step,
            fingerprint=empty.fingerprint, estimated="sums of group means", moments=empty.moments,
        ).to(empty.device)  # fmt: skip

    def __call__(self, memories: Sequence[PrototypeMemory]) -> PrototypeMemory:
        """The sum of what each memory has.

        Raises:
            ValueError: there are none.
            OverflowError: an id leaves no room, or a value does not fit fixed point.
        """
        if not memories:
            raise ValueError("no groups: expected one memory or more")
        total = self.kind(memories[0])
        for memory in memories:
            total.merge(self._sums_of(memory))
        return total

    def memory(self, sums: PrototypeMemory) -> PrototypeMemory:
        """The estimate; see :meth:`.GroupMoments.memory`."""
        own = sums.classes % 2 == 0
        counts, freedom = sums.counts[own], sums.counts[~own].double() - 1
        if not freedom.sum():
            warn_of_single_groups()
        if self.weights == "samples":
            shares = torch.where(freedom > 0, (counts - 1) / freedom.clamp(min=1), 0.0)
            spread = torch.einsum("c,cij->ij", shares, sums.scatter()[own])
        else:  # the classes of zeros add nothing
            each = float(counts.sum() - len(counts)) / max(float(freedom.sum()), 1.0)
            spread = each * sums.scatter()
        second = spread + (sums.sums[own] / counts[:, None]).T @ sums.sums[own]
        return PrototypeMemory.from_statistics(
            GroupMoments.kind(sums, self.weights), classes=sums.classes[own] // 2, counts=counts,
            sums=sums.sums[own], second_moment=(second + second.T) / 2,
        )  # fmt: skip

    def _sums_of(self, memory: PrototypeMemory) -> PrototypeMemory:
        kind = self.kind(memory)
        if not len(memory):
            return kind
        moments = GroupMoments([memory], self.subsamples)
        classes, counts, sums = moments.classes, moments.counts, moments.sums
        if int(classes.max()) > torch.iinfo(torch.int64).max // 2 - 1:
            raise OverflowError(
                f"class id {int(classes.max())} leaves no room for two ids a class: number "
                "classes from 0"
            )
        second = self._pooled(moments.class_moments())
        if kind.exact:
            second.diagonal(dim1=-2, dim2=-1).add_(kind.width / 2 * kind.step**2)
        if self.weights == "samples":
            second = torch.cat([second, torch.zeros_like(second)])
        return PrototypeMemory.from_statistics(
            kind,
            classes=torch.cat([2 * classes, 2 * classes + 1]),
            counts=torch.cat([counts, moments.group_counts]),
            sums=torch.cat([sums, torch.zeros_like(sums)]),
            second_moment=second,
        )

    def _pooled(self, second: Tensor) -> Tensor:
        return second if self.weights == "samples" else second.sum(0)
