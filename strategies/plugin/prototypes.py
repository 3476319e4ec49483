"""A head and the statistics that it answers from: what a strategy on prototypes is without a host.

:class:`.PrototypePlugin` is this in an Avalanche strategy; on a frozen backbone, whose features are
computed beforehand, it is all there is to learn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from protocl.errors import NotFittedError
from protocl.heads import NearestMean
from protocl.heads.base import Head
from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level
from protocl.memory.kind import Moments
from protocl.model.answers import Answering
from protocl.strategies.plugin.class_statistics import class_statistics, memory_from, memory_state
from protocl.strategies.plugin.feature_buffer import (
    MOST_ELEMENTS_BY_CLASS,
    FeatureChunk,
    in_chunks,
)
from protocl.strategies.plugin.task_classes import TaskClasses


class Prototypes:
    """Sums up the features of each class, and answers from the sums.

    Args:
        head: turns the memory into logits; ``NearestMean()`` by default.
        memory: statistics to start from, such as a loaded or merged memory.
        level: keep more than the head needs, for instance to fit another head later.
        floor: logit of classes never seen. Cross-entropy on samples of such a class is infinite
            for ``-inf``; a finite floor is lowered where a seen class scores less.
        mask_tasks: where samples carry task labels, let only classes seen under that label win.
        per_task: keep a prototype for each pair of task and class, for benchmarks whose class ids
            start at zero in each task.
        fingerprint: identity of a frozen backbone, kept in the memory.
        exact: sum in fixed point, as :class:`protocl.PrototypeMemory` explains.
        step: quantisation step of ``exact``.
        moments: numbers an entry of a second moment, as :class:`protocl.PrototypeMemory` explains.

    Attributes:
        memory: the statistics, or None until the first features were seen.
        head: fitted to the memory whenever it is asked.
        tasks: which classes were seen under which task label.
    """

    def __init__(
        self,
        head: Head | None = None,
        *,
        memory: PrototypeMemory | None = None,
        level: Level | None = None,
        floor: float = float("-inf"),
        mask_tasks: bool = True,
        per_task: bool = False,
        fingerprint: str | None = None,
        exact: bool = False,
        step: float = 2.0**-16,
        moments: Moments = "pairs",
    ) -> None:
        if not isinstance(head, Head | None):
            raise TypeError(f"head={head!r}: expected a head, such as NearestMean()")
        self.head = NearestMean() if head is None else head
        self.memory = memory
        self.level = level
        self.floor = floor
        self.fingerprint = fingerprint
        self.exact = exact
        self.step = step
        self.moments = moments
        self.tasks = TaskClasses(mask=mask_tasks, per_task=per_task)

    # -- learning ---------------------------------------------------------------------------

    def learn(self, batches: Iterable[FeatureChunk]) -> None:
        """Add the statistics of samples: features, labels and task labels, batch by batch."""
        part = self._statistics(batches)
        if part is not None:
            self._add(part)

    def learn_share(
        self,
        batches: Iterable[FeatureChunk],
        classes: Tensor,
        tasks: Tensor,
        add_up: Callable[[PrototypeMemory], PrototypeMemory],
    ) -> None:
        """See :class:`protocl.config.schema.SharedLearner`."""
        self.tasks.note(classes, tasks)
        rest = iter(batches)
        first = next(rest)
        part = self._statistics(chain([first], rest))
        self._add(add_up(self._new_memory(first[0]) if part is None else part))

    def _add(self, part: PrototypeMemory) -> None:
        if self.memory is None or part.ordered:
            self.memory = part  # without a copy: statistics can be gigabytes
        else:
            self.memory += part

    def _statistics(self, batches: Iterable[FeatureChunk]) -> PrototypeMemory | None:
        by_class = (self.level or self.head.required_level) == "full"
        chunks = in_chunks(batches, MOST_ELEMENTS_BY_CLASS if by_class else None)
        return class_statistics(chunks, self._begin, self.tasks.note)

    def _begin(self, features: Tensor) -> PrototypeMemory:
        """What samples are added to: none of before, or all where the order of samples counts."""
        if self.memory is not None and self.memory.ordered:
            return self.memory.copy()
        return self._new_memory(features)

    def _new_memory(self, features: Tensor) -> PrototypeMemory:
        memory = self.head.new_memory(
            features.shape[1],
            level=self.level,
            exact=self.exact,
            step=self.step,
            moments=self.moments,
            fingerprint=self.fingerprint,
        )
        return memory.to(features.device)

    # -- answering --------------------------------------------------------------------------

    def to(self, device: torch.device | str) -> None:
        """Move statistics and head to a device."""
        if self.memory is not None:
            self.memory.to(device)
            self.head.to(device)

    def logits(self, features: Tensor, tasks: Tensor | None = None, width: int = 0) -> Tensor:
        """Logits ``(N, width or more)`` with one column for each class id.

        Args:
            features: ``(N, D)``.
            tasks: task labels ``(N,)``, if the samples carry any.
            width: least number of columns.

        Raises:
            NotFittedError: no features have been seen.
        """
        if self.memory is None:
            raise NotFittedError(
                f"{type(self).__name__} has no prototypes yet: train an experience first"
            )
        logits = self.head.fit(self.memory)(features)
        return self.tasks.dense(logits, self.head.classes, tasks, width, self.floor)

    def final_answer(self) -> Answering | None:
        """What a model on disk keeps of it; None where nothing was learned."""
        return None if self.memory is None else (self.head, self.memory)

    # -- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only, so that ``torch.load`` needs no pickled code."""
        return {**memory_state(self.memory), "tasks": self.tasks.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave of an object with the same arguments."""
        self.tasks.load_state_dict(state["tasks"])
        self.memory = memory_from(state, self._new_memory, self.memory)
