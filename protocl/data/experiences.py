"""Which samples come when, without a copy of any: a class-incremental stream as rows of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from protocl.data.arrays import ArrayData, TensorData, as_images


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of one experience, as rows of the data set.

    Attributes:
        x: samples of the whole data set ``(N, ...)``.
        y: their class ids ``(N,)``.
        rows: ``(M,)`` int64, where those of the experience are.
        task: their task label.
    """

    x: Tensor
    y: Tensor
    rows: Tensor
    task: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> list[int]:
        """Their class ids, in the order in which Avalanche has them."""
        return list(set(self.y[self.rows].tolist()))

    def split(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Mini-batches of inputs ``(B, ...)``, labels ``(B,)`` and task labels ``(B,)`` in order.

        Each is gathered by itself, as for an Avalanche strategy: the last bit of a matrix product
        can depend on how its operands are aligned.
        """
        for rows in self.rows.split(size):
            y = self.y[rows]
            yield as_images(self.x.index_select(0, rows)), y, torch.full_like(y, self.task)


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Training samples that come without labels, beside those of each experience.

    Attributes:
        x: samples ``(N, ...)``, as in :class:`.ArrayData`.
        experiences: ``(N,)`` with which they come.
        new_categories: of each experience, the number of classes among them that nobody names.
    """

    x: Tensor
    experiences: Tensor
    new_categories: tuple[int, ...]

    def rows(self, t: int) -> Tensor:
        """``(M,)`` int64, where those of experience ``t`` are."""
        return (self.experiences == t).nonzero().flatten()

    def inputs(self, rows: Tensor) -> Tensor:
        """Samples at ``rows`` ``(M,)`` as a model takes them."""
        return as_images(self.x.index_select(0, rows))


@dataclass(frozen=True, eq=False)
class ClassStream:
    """A class-incremental stream: which classes, and which samples, come in which experience.

    Attributes:
        data: the data set; its test samples are those that are used.
        classes: ids of each experience, in their order of arrival.
        task_labels: the experiences are numbered as tasks; otherwise all are task 0.
        unlabelled: further samples, for strategies that learn without labels; None without any.
        hidden: ``(N,)`` class ids of these, for whoever measures.
    """

    data: ArrayData
    classes: list[list[int]]
    task_labels: bool
    unlabelled: Unlabelled | None = None
    hidden: Tensor | None = None

    def __len__(self) -> int:
        return len(self.classes)

    def train(self, t: int) -> Samples:
        """Training samples of experience ``t``."""
        return Samples(
            self.data.x_train, self.data.y_train, self._rows(self._train, t), self.task(t)
        )

    def test(self, t: int) -> Samples:
        """Test samples of experience ``t``."""
        data = self.data
        return Samples(data.x_test, data.y_test, self._rows(self._test, t), self.task(t))

    def task(self, t: int) -> int:
        """Task label of experience ``t``."""
        return t if self.task_labels else 0

    def _rows(self, by_class: Sequence[Tensor], t: int) -> Tensor:
        # Class by class in the order of a set, as Avalanche has them: sums depend on it.
        return torch.cat([by_class[c] for c in set(self.classes[t])])

    @cached_property
    def _train(self) -> Sequence[Tensor]:
        return _rows_by_class(self.data.y_train, self.data.n_classes)

    @cached_property
    def _test(self) -> Sequence[Tensor]:
        return _rows_by_class(self.data.y_test, self.data.n_classes)

    def benchmark(self) -> Any:
        """The same stream as an Avalanche benchmark, see :func:`.build_benchmark`."""
        from avalanche.benchmarks import nc_benchmark

        return nc_benchmark(
            TensorData(self.data.x_train, self.data.y_train),
            TensorData(self.data.x_test, self.data.y_test),
            n_experiences=len(self),
            task_labels=self.task_labels,
            shuffle=False,
            fixed_class_order=[c for classes in self.classes for c in classes],
            per_exp_classes={t: len(classes) for t, classes in enumerate(self.classes)},
        )


def _rows_by_class(y: Tensor, n_classes: int) -> Sequence[Tensor]:
    """Where the samples of each class id are, in ascending order."""
    return y.argsort(stable=True).split(torch.bincount(y, minlength=n_classes).tolist())
