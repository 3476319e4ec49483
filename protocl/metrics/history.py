"""What one evaluation found, and the history of evaluations from which all metrics come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from protocl.metrics import class_incremental as metrics
from protocl.metrics.calibration import ReliabilityBins
from protocl.metrics.confusion import Confusion
from protocl.metrics.frequency import accuracy_by_frequency


@dataclass(frozen=True)
class Evaluation:
    """Counts of one pass over a test stream.

    Attributes:
        confusion: experience id -> counts on that experience's test set.
        reliability: confidence against accuracy over the whole stream; None when the model
            answered without probabilities.
    """

    confusion: Mapping[int, Confusion]
    reliability: ReliabilityBins | None = None

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can hold; :meth:`from_dict` reads it back without loss."""
        return {
            "confusion": {str(key): counts.to_dict() for key, counts in self.confusion.items()},
            "reliability": None if self.reliability is None else self.reliability.to_dict(),
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Evaluation:
        """Read what :meth:`to_dict` wrote."""
        bins = state["reliability"]
        return cls(
            {int(key): Confusion.from_dict(counts) for key, counts in state["confusion"].items()},
            None if bins is None else ReliabilityBins.from_dict(bins),
        )


@dataclass
class History:
    """Evaluations after experiences 0, 1, 2, ...: row ``t`` of every metric comes from entry ``t``.

    Attributes:
        evaluations: entry ``t`` was made after training on experience ``t`` and covers at
            least the test experiences ``0 ... t``; later ones are kept but enter no metric.
    """

    evaluations: list[Evaluation] = field(default_factory=list)

    def append(self, evaluation: Evaluation) -> None:
        """Add the evaluation made after the next experience.

        Raises:
            ValueError: a test experience seen so far is missing from it.
        """
        t = len(self.evaluations)
        missing = [i for i in range(t + 1) if i not in evaluation.confusion]
        if missing:
            raise ValueError(
                f"History: the evaluation after experience {t} must cover test experiences "
                f"0 to {t}, but it lacks {missing}; evaluate on test_stream[: {t + 1}]"
            )
        self.evaluations.append(evaluation)

    @property
    def accuracy_matrix(self) -> list[list[float]]:
        """Lower-triangular rows: ``[t][i]`` is the accuracy on experience i after training t."""
        return [
            [evaluation.confusion[i].accuracy for i in range(t + 1)]
            for t, evaluation in enumerate(self.evaluations)
        ]

    @property
    def stream_accuracy(self) -> list[float]:
        """Accuracy over all test samples of the experiences seen so far, after each experience."""
        return [
            sum(evaluation.confusion[i].correct for i in range(t + 1))
            / sum(evaluation.confusion[i].total for i in range(t + 1))
            for t, evaluation in enumerate(self.evaluations)
        ]

    @property
    def latest(self) -> float | None:
        """The last of :attr:`stream_accuracy`; None before the first evaluation."""
        return self.confusion.accuracy if self.evaluations else None

    @property
    def confusion(self) -> Confusion:
        """Counts after the last experience, over all test experiences seen."""
        seen = range(len(self.evaluations))
        return sum((self.evaluations[-1].confusion[i] for i in seen), Confusion.empty())

    def summary(self) -> dict[str, Any]:
        """The ``metrics`` of a ``result.json``; formulas in :mod:`.class_incremental`.

        Raises:
            ValueError: nothing was evaluated yet.
        """
        matrix, stream = self.accuracy_matrix, self.stream_accuracy
        bins = self.evaluations[-1].reliability if self.evaluations else None
        return {
            "accuracy_matrix": matrix,
            "stream_accuracy": stream,
            "average_incremental_accuracy": metrics.average_incremental_accuracy(stream),
            "last_accuracy": metrics.last_accuracy(stream),
            "average_accuracy": metrics.average_accuracy(matrix),
            "forgetting": metrics.forgetting(matrix),
            "maximum_forgetting": metrics.maximum_forgetting(matrix),
            "backward_transfer": metrics.backward_transfer(matrix),
            "expected_calibration_error": None if bins is None else bins.expected_error(),
        }

    def confusion_table(self) -> dict[str, Any]:
        """The ``confusion`` of a ``result.json``: sorted classes and a square table of counts."""
        classes, matrix = self.confusion.dense()
        return {"classes": classes.tolist(), "counts": matrix.tolist()}

    def measures(self, train_counts: Tensor | None = None) -> dict[str, Any]:
        """``metrics`` and ``confusion`` of a ``result.json``.

        Args:
            train_counts: ``(C,)`` training samples of each class id, to tell classes with many from
                those with few; see :func:`.accuracy_by_frequency`.
        """
        summary = self.summary()
        if train_counts is not None:
            by_frequency = accuracy_by_frequency(self.confusion, train_counts)
            summary["accuracy_by_frequency"] = by_frequency
        return {"metrics": summary, "confusion": self.confusion_table()}

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can hold, for checkpoints; :meth:`from_dict` reads it back."""
        return {"evaluations": [evaluation.to_dict() for evaluation in self.evaluations]}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> History:
        """Read what :meth:`to_dict` wrote."""
        return cls([Evaluation.from_dict(entry) for entry in state["evaluations"]])
