"""Counts of true and predicted classes, for any class ids, that add up like a memory does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protocl.memory.rows import class_id_tensor


@dataclass(frozen=True, eq=False)
class Confusion:
    """How often class ``true`` was answered as class ``predicted``; only pairs that occurred.

    Holding pairs rather than a matrix keeps 600 classes of 20,000 possible ids small and makes
    the sum over experiences, processes or clients exact in any order.

    Attributes:
        true: ``(P,)`` int64 true class of each pair; pairs are sorted and distinct.
        predicted: ``(P,)`` int64 predicted class of each pair.
        counts: ``(P,)`` int64 samples of each pair.

    >>> a = Confusion.from_predictions(torch.tensor([7, 7, 3]), torch.tensor([7, 3, 3]))
    >>> (a + a).accuracy, (a + a).total
    (0.6666666666666666, 6)
    >>> classes, matrix = a.dense()
    >>> classes.tolist(), matrix.tolist()
    ([3, 7], [[1, 0], [1, 1]])
    """

    true: Tensor
    predicted: Tensor
    counts: Tensor

    @classmethod
    def empty(cls) -> Confusion:
        """No sample at all: the neutral element of ``+``."""
        nothing = torch.zeros(0, dtype=torch.int64)
        return cls(nothing, nothing, nothing)

    @classmethod
    def from_predictions(cls, true: Any, predicted: Any) -> Confusion:
        """Count ``(N,)`` true against ``(N,)`` predicted class ids (tensors or arrays).

        Raises:
            ValueError: the two are not vectors of integers of equal length.
        """
        true, predicted = torch.as_tensor(true), torch.as_tensor(predicted)
        if true.ndim != 1 or true.shape != predicted.shape:
            raise ValueError(
                "Confusion: true and predicted must be vectors of equal length, "
                f"got shapes {tuple(true.shape)} and {tuple(predicted.shape)}"
            )
        for name, ids in (("true", true), ("predicted", predicted)):
            if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
                raise ValueError(f"Confusion: {name} must hold integer class ids, got {ids.dtype}")
        predicted = predicted.to(true.device)
        return _sum_pairs(true.long(), predicted.long(), torch.ones_like(true, dtype=torch.int64))

    def __add__(self, other: Confusion) -> Confusion:
        device = self.counts.device
        return _sum_pairs(
            torch.cat([self.true, other.true.to(device)]),
            torch.cat([self.predicted, other.predicted.to(device)]),
            torch.cat([self.counts, other.counts.to(device)]),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Confusion) and self.to_dict() == other.to_dict()

    def among(self, classes: int | Iterable[int] | Tensor) -> Confusion:
        """The counts of samples whose true class is one of ``classes``."""
        kept = torch.isin(self.true, class_id_tensor(classes).to(self.true.device))
        return Confusion(self.true[kept], self.predicted[kept], self.counts[kept])

    @property
    def total(self) -> int:
        """The number of samples that were counted."""
        return int(self.counts.sum())

    @property
    def correct(self) -> int:
        """Samples whose predicted class is the true one."""
        return int(self.counts[self.true == self.predicted].sum())

    @property
    def accuracy(self) -> float:
        """Right answers over samples, in [0, 1]; raises ValueError when there is no sample."""
        total = self.total
        if total == 0:
            raise ValueError("Confusion: the accuracy of no sample is undefined")
        return self.correct / total

    def dense(self) -> tuple[Tensor, Tensor]:
        """``classes (C,)``, sorted, and ``matrix (C, C)``: rows are true, columns predicted."""
        classes, position = torch.unique(
            torch.cat([self.true, self.predicted]), return_inverse=True
        )
        rows, columns = position.view(2, -1)
        matrix = self.counts.new_zeros(len(classes), len(classes))
        matrix[rows, columns] = self.counts
        return classes, matrix

    def cpu(self) -> Confusion:
        """Copy the counts to the host."""
        return Confusion(self.true.cpu(), self.predicted.cpu(), self.counts.cpu())

    def to_dict(self) -> dict[str, list[int]]:
        """The three vectors as lists, for JSON; :meth:`from_dict` reads them back."""
        return {
            "true": self.true.tolist(),
            "predicted": self.predicted.tolist(),
            "counts": self.counts.tolist(),
        }

    @classmethod
    def from_dict(cls, state: dict[str, list[int]]) -> Confusion:
        """Read what :meth:`to_dict` wrote."""
        fields = (state["true"], state["predicted"], state["counts"])
        return cls(*(torch.tensor(values, dtype=torch.int64) for values in fields))


def _sum_pairs(true: Tensor, predicted: Tensor, counts: Tensor) -> Confusion:
    """Add the counts of equal pairs; the result is sorted by true, then predicted class."""
    if len(true) == 0:
        return Confusion(true, predicted, counts)
    classes, position = torch.unique(torch.cat([true, predicted]), return_inverse=True)
    rows, columns = position.view(2, -1)
    pairs, pair = torch.unique(rows * len(classes) + columns, return_inverse=True)
    sums = torch.zeros_like(pairs).index_add_(0, pair, counts)
    return Confusion(classes[pairs // len(classes)], classes[pairs % len(classes)], sums)
