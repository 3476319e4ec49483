"""What is measured at a step of a scenario."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field

import torch
from rich.filesize import decimal
from torch import Tensor

from protocl.federation.reconnaissance.discovered import DiscoveryReport
from protocl.metrics.confusion import Confusion
from protocl.metrics.detection import Detection, best_in_words


@dataclass(frozen=True)
class BeforeMerge:
    """Accuracies of a client after its own mission, before it meets anybody.

    ``None`` where there are no such classes.

    Attributes:
        client: its number.
        base: on the base classes.
        earlier: on field classes that it knew before.
        new: on the classes of the mission that were new to it.
    """

    client: int
    base: float | None
    earlier: float | None
    new: float | None

    @property
    def mean(self) -> float:
        """Plain mean of those that exist: the paper's first evaluation."""
        parts = [part for part in (self.base, self.earlier, self.new) if part is not None]
        return sum(parts) / len(parts)


@dataclass(frozen=True)
class StepReport:
    """What one step brought.

    Attributes:
        step: its number, from 1.
        classes: classes that anybody has been taught by then, base classes included.
        new_classes: those of them that nobody knew before this step.
        accuracy: after the merge on all of these classes: the server's, or without a server the
            mean over clients.
        base: the same on the base classes; None without any.
        field: the same on the others; None before the first.
        own: mean over clients of the accuracy on the classes that their own missions taught; None
            where no client was taught any.
        alone: as ``accuracy``, mean over clients that never meet anybody; None if not asked for.
        alone_own: as ``own`` for clients that never meet anybody.
        before: of every client with a mission.
        bytes_up, bytes_down: of the messages of this step.
        learn_seconds: wall time of all missions of the step together.
        merge_seconds: wall time of the meetings.
        state_bytes: mean over clients of what they keep.
        unknown: area under the ROC curve by name of the score: known against not yet taught.
        detection: all measures by name of the score.
        discovery: what was found in samples without labels; None where there are none.
    """

    step: int
    classes: int
    new_classes: int
    accuracy: float
    base: float | None
    field: float | None
    own: float | None
    alone: float | None
    alone_own: float | None
    before: Sequence[BeforeMerge]
    bytes_up: int
    bytes_down: int
    learn_seconds: float
    merge_seconds: float
    state_bytes: float
    unknown: Mapping[str, float] = dataclass_field(default_factory=dict)
    detection: Mapping[str, Detection] = dataclass_field(default_factory=dict)
    discovery: DiscoveryReport | None = None

    def __str__(self) -> str:
        alone = "" if self.alone is None else f", alone {self.alone:.4f}"
        discovery = "" if self.discovery is None else f", {self.discovery}"
        return (
            f"accuracy {self.accuracy:.4f} on {self.classes} classes"
            f"{alone}{best_in_words(self.unknown)}{discovery}, "
            f"{decimal(self.bytes_up)} up, {decimal(self.bytes_down)} down"
        )


def accuracy_on(classes: set[int], answers: Tensor, labels: Tensor) -> float | None:
    """Share of right answers among samples of ``classes``; None where there are none."""
    mine = torch.isin(labels, torch.tensor(sorted(classes), dtype=torch.int64))
    if not bool(mine.any()):
        return None
    return float((answers[mine] == labels[mine]).float().mean())


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of those that are there; None for none."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def confusions(stages: Sequence[set[int]], answers: Tensor, labels: Tensor) -> dict[int, Confusion]:
    """One confusion for the test samples of each stage's classes."""
    table = {}
    for number, classes in enumerate(stages):
        mine = torch.isin(labels, torch.tensor(sorted(classes), dtype=torch.int64))
        table[number] = Confusion.from_predictions(labels[mine], answers[mine])
    return table


def per_class_costs(reports: Sequence[StepReport]) -> dict[str, float]:
    """Bytes and seconds for each field class, over the whole scenario."""
    learned = max(1, sum(report.new_classes for report in reports))
    return {
        "bytes_up": sum(report.bytes_up for report in reports) / learned,
        "bytes_down": sum(report.bytes_down for report in reports) / learned,
        "seconds": sum(r.learn_seconds + r.merge_seconds for r in reports) / learned,
        "memory_bytes": reports[-1].state_bytes / reports[-1].classes,
    }
