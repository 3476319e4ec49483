"""Which classes belong to which task, where samples carry task labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

STRIDE = 2**32
"""Distance between the memory's ids of one class in successive tasks, above any class id."""


def has_task_labels(dataset: Any) -> bool:
    """Whether the mini-batches of an Avalanche dataset end in task labels.

    What else a data set gives with each sample, such as its index, is no task.
    """
    attributes = getattr(dataset, "_data_attributes", {})
    return "targets_task_labels" in attributes and attributes["targets_task_labels"].use_in_getitem


def tasks_of(strategy: Any) -> Tensor | None:
    """Task labels ``(B,)`` of the present mini-batch, if its data set has any."""
    if not has_task_labels(strategy.experience.dataset) or isinstance(strategy.mbatch, Mapping):
        return None
    tasks: Tensor = strategy.mb_task_id
    return tasks


def repeated(tasks: Tensor | None, samples: int) -> Tensor | None:
    """Task labels of so many ``samples``, which are views of those of a mini-batch in turn."""
    return None if tasks is None else tasks.repeat(samples // len(tasks))


class TaskClasses:
    """Remembers the classes of each task, and lets only those of a sample's task win.

    Args:
        mask: let only the classes of a sample's task win.
        per_task: the same class id means another class in each task.

    Attributes:
        seen: classes seen under each task label.
    """

    def __init__(self, mask: bool, per_task: bool) -> None:
        self.mask = mask
        self.per_task = per_task
        self.seen: dict[int, set[int]] = {}

    def state_dict(self) -> dict[int, list[int]]:
        """The classes seen under each task label, as numbers in lists."""
        return {task: sorted(classes) for task, classes in self.seen.items()}

    def load_state_dict(self, state: Mapping[int, Iterable[int]]) -> None:
        """Continue from what :meth:`state_dict` gave."""
        self.seen = {task: set(classes) for task, classes in state.items()}

    def note(self, labels: Tensor, tasks: Tensor | None) -> Tensor:
        """Remember which classes came under which task.

        Args:
            labels: class ids ``(N,)``.
            tasks: task labels ``(N,)``, if there are any.

        Returns:
            The memory's ids ``(N,)`` of the samples' classes.
        """
        if tasks is None:
            return self.ids(labels, tasks)
        for class_id in (labels + STRIDE * tasks.to(torch.int64)).unique().tolist():
            self._note_one(*divmod(class_id, STRIDE))
        return self.ids(labels, tasks)

    def ids(self, labels: Tensor, tasks: Tensor | None) -> Tensor:
        """The memory's ids ``(N,)`` int64 of classes ``(N,)`` under task labels ``(N,)``."""
        labels = labels.to(torch.int64)  # of fewer bits they would overflow in what ids count
        if tasks is None or not self.per_task:
            return labels
        return labels + STRIDE * tasks.to(torch.int64)

    def _note_one(self, task: int, label: int) -> None:
        elsewhere = [other for other, seen in self.seen.items() if other != task and label in seen]
        if elsewhere and self.mask and not self.per_task and label not in self.seen.get(task, ()):
            warnings.warn(
                f"class {label} of task {task} was seen under task {elsewhere[0]} too and shares "
                "its prototype; if class ids start at zero in each task, give per_task=True",
                stacklevel=2,
            )
        self.seen.setdefault(task, set()).add(label)

    def dense(
        self, logits: Tensor, classes: Tensor, tasks: Tensor | None, width: int, floor: float
    ) -> Tensor:
        """Logits with one column for each class id.

        Args:
            logits: ``(N, C)``.
            classes: the memory's ids ``(C,)`` of the columns.
            tasks: task labels ``(N,)``, if there are any.
            width: least number of columns.
            floor: value of classes that were not seen, or not under the sample's task; lowered
                for samples all of whose logits are below it, so that such classes never win.

        Returns:
            ``(N, max(width, largest class id + 1))``.
        """
        allowed = self._allowed(classes, tasks)
        classes = classes % STRIDE if self.per_task else classes
        size = max(width, int(classes.max()) + 1)
        lowest = logits.amin(1, keepdim=True)
        below = torch.nextafter(lowest, torch.full_like(lowest, float("-inf")))
        low = below.clamp(max=floor)
        dense = low.expand(-1, size).clone()
        if allowed is not None:
            logits = torch.where(allowed, logits, low)
        return dense.scatter_reduce_(1, classes.expand_as(logits), logits, "amax")

    def _allowed(self, classes: Tensor, tasks: Tensor | None) -> Tensor | None:
        """Which columns ``(N, C)`` may win for each sample; None for all."""
        if tasks is None or not (self.mask or self.per_task) or len(self.seen) < 2:
            return None
        allowed = torch.ones((len(tasks), len(classes)), dtype=torch.bool, device=classes.device)
        for task in tasks.unique().tolist():
            if task in self.seen:
                allowed[tasks == task] = self._columns(task, classes)
        return allowed

    def _columns(self, task: int, classes: Tensor) -> Tensor:
        """Which columns ``(C,)`` are classes of ``task``."""
        if self.per_task:
            return classes // STRIDE == task
        here = torch.tensor(sorted(self.seen[task]), device=classes.device)
        anywhere = torch.tensor(sorted(set().union(*self.seen.values())), device=classes.device)
        # Classes merged in from elsewhere came under no task label.
        return torch.isin(classes, here) | ~torch.isin(classes, anywhere)


def refuse_empty(experience: Any) -> None:
    """Raise a ValueError for an experience without samples, which no loader can serve."""
    if not len(experience.dataset):
        number = getattr(experience, "current_experience", "")
        raise ValueError(
            f"experience {number} has no samples: expected at least one; leave it out of what you "
            "give to train(), as in [e for e in stream if len(e.dataset)]"
        )
