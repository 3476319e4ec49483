"""At which offset rows join: chosen by clustering known classes whose labels are hidden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from protocl.metrics.clusters import clustering_accuracy
from protocl.metrics.confusion import Confusion
from protocl.open_world.agglomeration import agglomerate
from protocl.open_world.evidence import TwoCovariance

OFFSETS = (0.0, -10.0, -20.0, -35.0, -50.0, -75.0, -100.0, -150.0, -200.0, -250.0, -350.0, -500.0)
"""Offsets that are tried: accuracy is steep near 0 and flat around its best."""


@dataclass(frozen=True)
class OffsetTable:
    """How many samples are in the cluster of their class, by offset. Tables of clients add up.

    Calibrating by pairs of halves of classes fails, for clustering picks extreme pairs; hence this.

    Attributes:
        offsets: tried, descending.
        correct: samples matched at each.
        total: samples.
    """

    offsets: tuple[float, ...]
    correct: tuple[int, ...]
    total: int

    @classmethod
    def of(
        cls,
        evidence: TwoCovariance,
        features: Tensor,
        labels: Tensor,
        offsets: Sequence[float] = OFFSETS,
    ) -> OffsetTable:
        """Cluster samples ``(N, D)`` without their labels ``(N,)``, then match the two.

        Classes that are not among those behind ``evidence`` judge best; about as many as there
        will be new ones, since more classes make wrong pairs more likely.

        Raises:
            ValueError: there is no sample, or no offset.

        Example:
            >>> features = torch.tensor([[0.0, 1], [1, 0], [9, 0], [8, 1], [0, 8], [1, 9]])
            >>> labels = torch.tensor([4, 4, 7, 7, 9, 9])
            >>> memory = PrototypeMemory(2, level="shared").update(features, labels)
            >>> evidence = TwoCovariance(shrinkage=0.0).fit(memory)
            >>> OffsetTable.of(evidence, features, labels, [0.0, -999.0]).correct
            (6, 2)
        """
        tried = tuple(sorted(set(offsets), reverse=True))
        if not len(features) or not tried:
            raise ValueError("choosing an offset takes a sample and an offset at least")
        joins = agglomerate(evidence, evidence.of_samples(features), lowest=tried[-1])
        tables = [Confusion.from_predictions(labels, joins.groups(offset)) for offset in tried]
        shares = [clustering_accuracy(table) for table in tables]
        return cls(tried, tuple(round(s * len(labels)) for s in shares), len(labels))

    def __add__(self, other: OffsetTable) -> OffsetTable:
        if self.offsets != other.offsets:
            raise ValueError(f"tables of offsets {self.offsets} and {other.offsets} do not add up")
        correct = zip(self.correct, other.correct, strict=True)
        total = self.total + other.total
        return replace(self, correct=tuple(a + b for a, b in correct), total=total)

    def __radd__(self, other: int) -> OffsetTable:
        """``sum(tables)``, which begins with 0."""
        return self if other == 0 else NotImplemented

    @property
    def best(self) -> float:
        """The offset with most samples in place; among equals the one nearest to 0."""
        return self.offsets[max(range(len(self.offsets)), key=lambda n: (self.correct[n], -n))]
