"""Batches whose sums wait on the device until they are asked for."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from protocl.memory.batch import check_batch
from protocl.memory.memory import PrototypeMemory
from protocl.memory.pending.sums import FixedPointSums, FloatingSums
from protocl.memory.rows import class_id_tensor


class PendingUpdates:
    """Sums of batches beside a memory, added to it as one when the block ends.

    An update of a memory asks the device several times for a number: how many classes there are,
    whether all features are finite. Here the host asks for nothing where the classes are declared,
    and otherwise once a batch, for its labels. What is wrong with a batch is found by
    :meth:`flush`, which then adds none of those since the last one.

    Sums are those of :meth:`protocl.PrototypeMemory.update`: in fixed point the same bits.

    Args:
        memory: on its device, of any level but ``full``.
        classes: all ids that may come, or None to read the labels of each batch.

    Raises:
        ValueError: the memory is of level ``full``, or its second moment is an estimate.

    Example:
        >>> memory = PrototypeMemory(2)
        >>> with PendingUpdates(memory, classes=[3, 7]) as pending:
        ...     _ = pending.update(torch.tensor([[0.0, 2.0], [0.0, 4.0]]), torch.tensor([7, 7]))
        >>> memory.classes.tolist(), memory.means.tolist()
        ([7], [[0.0, 3.0]])
    """

    def __init__(
        self, memory: PrototypeMemory, classes: Iterable[int] | Tensor | None = None
    ) -> None:
        memory.require_summed()
        if memory.level == "full":
            raise ValueError(
                "second moments of each class (level 'full') are grouped by the labels of a batch, "
                "for which the host has to wait: use memory.update"
            )
        self.memory = memory
        self._declared = classes is not None
        ids = class_id_tensor(() if classes is None else classes).unique()
        if len(ids) and int(ids[0]) < 0:
            raise ValueError(f"class {int(ids[0])}: class ids must be 0 or greater")
        self._known = set(ids.tolist())
        self._begin(ids.to(memory.device))

    def _begin(self, ids: Tensor) -> None:
        kind = FixedPointSums if self.memory.exact else FloatingSums
        self._sums: FixedPointSums | FloatingSums = kind(self.memory, ids)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> Self:
        """Add the samples of a batch.

        Args:
            features: ``(N, D)`` floating point; copied to the device without waiting.
            labels: ``(N,)`` class ids.

        Raises:
            TypeError, ValueError: types or shapes do not fit.
        """
        check_batch(features, labels, self.memory.feature_dim)
        if len(labels) == 0:
            return self
        if not self._declared:
            self._learn_classes(labels)
        device = self.memory.device
        self._sums.add(
            features.detach().to(device, non_blocking=True),
            labels.to(device, torch.int64, non_blocking=True),
        )
        return self

    def _learn_classes(self, labels: Tensor) -> None:
        """Make room for the classes of a batch: the one time that the host waits for it."""
        found = labels_on_host(labels)
        if min(found) < 0:
            raise ValueError(f"label {min(found)}: class ids must be 0 or greater")
        if found - self._known:
            self._known |= found
            ids = torch.tensor(sorted(self._known), dtype=torch.int64)
            self._sums.grow(ids.to(self.memory.device, non_blocking=True))

    def flush(self) -> PrototypeMemory:
        """Add what waits to the memory, and give it.

        Raises:
            ValueError: a feature is NaN or infinite, or a label is not among the classes.
            OverflowError: in fixed point, a value or a sum does not fit.
        """
        sums = self._sums
        self._begin(sums.ids)
        part = sums.as_memory(self.memory)
        if len(part):
            self.memory.merge(part)
        return self.memory

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.flush()


def labels_on_host(labels: Tensor) -> set[int]:
    """The classes in labels ``(N,)``, for which the host waits."""
    return set(labels.tolist())
