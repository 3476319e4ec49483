"""What a round brought, and how the present model answers the test data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from rich.filesize import decimal

from protocl.data.arrays import ArrayData
from protocl.errors import AllFailedError, ConfigError
from protocl.federation.config import Method, MethodConfig
from protocl.metrics.confusion import Confusion
from protocl.metrics.detection import Detection, best_in_words
from protocl.open_world.scores import known_scores, reported_scores

if TYPE_CHECKING:
    from flwr.app import ArrayRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundReport:
    """What one round brought.

    Attributes:
        round: its number, from 1.
        accuracy: on the test data of all classes that have arrived; None where clients measure it
            and none of them answered.
        classes: number of these classes.
        seconds: wall time of the round without the evaluation.
        bytes_up, bytes_down: measured on the serialised messages.
        evaluated: samples that the accuracy is of.
        detection: by name of the score, how well classes to come are told from those known.
    """

    round: int
    accuracy: float | None
    classes: int
    seconds: float
    bytes_up: int
    bytes_down: int
    evaluated: int = 0
    detection: Mapping[str, Detection] = field(default_factory=dict)

    def __str__(self) -> str:
        accuracy = "unknown" if self.accuracy is None else f"{self.accuracy:.4f}"
        told = best_in_words({name: one.auroc for name, one in self.detection.items()})
        return (
            f"accuracy {accuracy} on {self.evaluated} samples of {self.classes} classes{told}, "
            f"{decimal(self.bytes_up)} up, {decimal(self.bytes_down)} down, {self.seconds:.2f} s"
        )


def require_scores(method: Method, config: MethodConfig) -> None:
    """Refuse ``unknown=true`` where there is no memory of the features that are at hand.

    Raises:
        ConfigError: there is none.
    """
    if method.memory is None or config.needs_samples or config.personal:
        raise ConfigError(
            f"unknown=true: method={config.name} merges no memory of features that the server "
            "computes; take method=prototypes, with distribute=false"
        )


class Evaluator:
    """Asks a method for the test data of the stages that have arrived.

    Args:
        method: a :class:`protocl.federation.config.Method`; with ``personal`` it also has
            ``personal_evaluations``.
        personal: clients measure themselves, there is no common model.
        data: as the method takes it.
        n_classes: number of class ids.
        stages: classes of each.
    """

    def __init__(
        self, method: Any, personal: bool, data: ArrayData, n_classes: int, stages: list[list[int]]
    ) -> None:
        self.method = method
        self.personal = personal
        self.data = data
        self.n_classes = n_classes
        self.stages = stages

    def answers(self, arrays: ArrayRecord, stage: int) -> dict[int, Confusion]:
        """Confusion on the test data of each stage up to ``stage``."""
        stages = enumerate(self.stages[: stage + 1])
        return {t: self._confusion(arrays, classes) for t, classes in stages}

    def completed(self, confusions: dict[int, Confusion]) -> dict[int, Confusion]:
        """With the newest answers there are, where all who hold some classes were lost just now.

        Raises:
            AllFailedError: nobody ever answered for some classes.
        """
        answered = dict(confusions)
        for stage, confusion in confusions.items():
            if not confusion.total:
                answered[stage] = self._newest_of(self.stages[stage])
        return answered

    def detection(self, stage: int) -> dict[str, Detection]:
        """How well test samples of the stages up to ``stage`` are told from those to come."""
        memory = self.method.memory
        arrived = [c for classes in self.stages[: stage + 1] for c in classes]
        known = torch.isin(self.data.y_test, torch.tensor(arrived))
        if memory is None or not len(memory) or bool(known.all()):
            return {}
        return reported_scores(known_scores(memory, self.data.x_test), known)

    def _confusion(self, arrays: ArrayRecord, classes: list[int]) -> Confusion:
        """On the test data of ``classes``; no answer is a wrong one."""
        if self.personal:
            return self._measured[-1].among(classes)
        rows = torch.isin(self.data.y_test, torch.tensor(classes))
        x, y = self.data.x_test[rows], self.data.y_test[rows]
        memory = self.method.memory
        if memory is None or len(memory):
            return Confusion.from_predictions(y, self.method.classify(arrays, x))
        return Confusion.from_predictions(y, (y + 1) % self.n_classes)

    @property
    def _measured(self) -> list[Confusion]:
        """What clients measured in each round, the newest last."""
        return list(self.method.personal_evaluations.values())

    def _newest_of(self, classes: list[int]) -> Confusion:
        for confusion in reversed(self._measured):
            if (own := confusion.among(classes)).total:
                logger.warning("classes %s: nobody answered just now; older answers count", classes)
                return own
        raise AllFailedError(
            f"no client that holds classes {classes} ever answered an evaluation, so their "
            "accuracy is not known; lower lost, or raise rounds"
        )
