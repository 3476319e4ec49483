"""Features that come by in a training epoch, and what they added to a memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.strategies.plugin.feature_buffer import FeatureBuffer, FeatureChunk


class TrainingPass:
    """Collects the features of one training epoch, and can take back what they added.

    Attributes:
        waiting: what was seen and not yet added to a memory.
        classes: ``(K,)`` ids of the experience, whose samples alone are added.
        part: statistics of what was added, or None.
        samples: number of all that was seen.
    """

    def __init__(self, classes: Tensor | None = None) -> None:
        self.waiting = FeatureBuffer()
        self.classes = torch.zeros(0, dtype=torch.int64) if classes is None else classes
        self.part: PrototypeMemory | None = None
        self.samples = 0

    @property
    def counted(self) -> int:
        """Samples that were added, which are those of the experience's classes."""
        return 0 if self.part is None else self.part.total

    def fits(self, batch: FeatureChunk) -> bool:
        """Whether there is room for a mini-batch."""
        return self.waiting.fits(batch)

    def add(self, batch: FeatureChunk) -> None:
        """Take in a mini-batch, for which there must be room.

        Raises:
            RuntimeError: it has not as many features as labels.
        """
        features, labels, _ = batch
        if len(features) != len(labels):
            raise RuntimeError(
                f"{len(features)} features but {len(labels)} labels in a training mini-batch: "
                "another plugin changed the batch; use PrototypePlugin(collect='extra_pass')"
            )
        self.samples += len(features)
        self.waiting.add(batch)

    def take(self) -> Iterator[FeatureChunk]:
        """What waits, if anything, without replayed samples of other experiences' classes."""
        if not self.waiting:
            return
        features, labels, tasks = self.waiting.take()
        mine = torch.isin(labels, self.classes)
        if not mine.all():  # selecting copies
            features, labels = features[mine], labels[mine]
            tasks = None if tasks is None else tasks[mine]
        yield features, labels, tasks

    def give(
        self, memory: PrototypeMemory | None, part: PrototypeMemory | None
    ) -> PrototypeMemory | None:
        """Add the statistics of a chunk, if there are any, to ``memory``, which is new if None."""
        if part is None:
            return memory
        self.part = part if self.part is None else self.part.merge(part)
        return part.copy() if memory is None else memory.merge(part)

    def taken_back(
        self, memory: PrototypeMemory | None, size: int, cut: bool
    ) -> PrototypeMemory | None:
        """``memory`` without what was given to it, said in a warning; None if that was all.

        Args:
            memory: what was given to.
            size: samples of the experience.
            cut: training was stopped in the epoch; else it dropped samples or replayed some.
        """
        if self.samples:
            came = f"training stopped after {self.samples} samples of the epoch in which"
            if not cut:
                came = f"{self.counted} samples of the experience's classes came in the epoch where"
            warnings.warn(
                f"{came} collect='training' collects: all {size} samples of the experience are "
                "read in an extra pass instead",
                stacklevel=3,
            )
        if memory is None or self.part is None:
            return memory
        return memory if len(memory.subtract(self.part)) else None


def was_cut(strategy: Any) -> bool:
    """Whether the present epoch ended before the last mini-batch of its loader."""
    return bool(strategy.clock.train_epoch_iterations < len(strategy.dataloader))
