"""An Avalanche plugin that counts what a strategy answers at evaluation.

Avalanche calls its plugins by the names of their callbacks and asks for no base class, so this
module needs no import of Avalanche (which takes seconds).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from protocl.errors import DivergedError
from protocl.metrics.calibration import ReliabilityBins
from protocl.metrics.confusion import Confusion
from protocl.metrics.history import Evaluation


class EvaluationRecorder:
    """Keeps the counts of the last evaluation; add it to a strategy's ``plugins``.

    Plugins run in the order of the list: put it after every plugin that changes ``mb_output``.
    Answers stay on the strategy's device until the evaluation ends; then one copy per test
    experience goes to the host. Evaluations inside training (Avalanche's ``eval_every``) are
    recorded like any other and replaced by the next one.

    Usage::

        recorder = EvaluationRecorder()
        strategy = Naive(..., plugins=[prototypes, recorder])
        history = History()
        for t, experience in enumerate(benchmark.train_stream):
            strategy.train(experience)
            strategy.eval(benchmark.test_stream[: t + 1])
            history.append(recorder.last)

    Args:
        calibration: also measure confidence, which needs logits (a softmax is taken of them).
    """

    def __init__(self, *, calibration: bool = True) -> None:
        self.calibration = calibration
        self._answers: dict[int, _Answers] = {}
        self._last: Evaluation | None = None

    @property
    def last(self) -> Evaluation:
        """The last evaluation that ended; RuntimeError before the first one."""
        if self._last is None:
            raise RuntimeError(
                "EvaluationRecorder: no evaluation has ended yet; call strategy.eval"
            )
        return self._last

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Start anew: an evaluation that was interrupted leaves nothing behind."""
        self._answers = {}

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Note the answers to one mini-batch, on its device."""
        experience = int(strategy.experience.current_experience)
        self.note(experience, strategy.mb_output.detach(), strategy.mb_y)

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Count the answers, as :meth:`conclude`."""
        self._last = self.conclude()

    def note(self, experience: int, logits: Tensor, labels: Tensor) -> None:
        """Note the answers to one mini-batch of a test experience.

        Args:
            experience: its id.
            logits: ``(N, classes)``, of which no graph is kept.
            labels: true class ids ``(N,)``.
        """
        answers = self._answers.setdefault(experience, _Answers())
        answers.add(logits, labels, self.calibration)

    def take(self) -> dict[int, list[list[Tensor]]]:
        """What was noted so far, on the host; it is as if it had not been noted."""
        noted, self._answers = self._answers, {}
        return {key: answers.columns() for key, answers in noted.items()}

    def put(self, noted: Mapping[int, Sequence[Sequence[Tensor]]]) -> None:
        """Note what :meth:`take` gave, here or in another process, after what was noted so far."""
        for key, columns in noted.items():
            self._answers.setdefault(key, _Answers()).append(columns)

    def conclude(self) -> Evaluation:
        """Bring the counts of all answers noted to the host; the next evaluation starts anew.

        Raises:
            DivergedError: logits are NaN or infinitely large, so that nothing is answered.
        """
        noted, self._answers = self._answers, {}
        for key, answers in noted.items():
            answers.require_numbers(key)
        confusion = {key: answers.confusion() for key, answers in noted.items()}
        bins = [answers.reliability() for answers in noted.values()]
        reliability = sum(bins[1:], bins[0]) if bins and self.calibration else None
        return Evaluation(confusion, reliability)


class _Answers:
    """True classes, answers and confidences of one test experience, batch by batch."""

    def __init__(self) -> None:
        self.true: list[Tensor] = []
        self.predicted: list[Tensor] = []
        self.confidence: list[Tensor] = []
        self.undefined: list[Tensor] = []

    def add(self, logits: Tensor, true: Tensor, calibration: bool) -> None:
        if logits.ndim != 2:
            raise ValueError(
                "EvaluationRecorder: expected logits of shape (N, classes) in strategy.mb_output, "
                f"got {tuple(logits.shape)}"
            )
        # `max`, not `argmax`: the same operation as in Avalanche's Accuracy, also for ties.
        best, predicted = logits.max(dim=1)
        self.undefined.append(best.isnan() | best.isposinf())
        self.true.append(true)
        self.predicted.append(predicted)
        if calibration:
            self.confidence.append((best - logits.logsumexp(dim=1)).exp())

    def columns(self) -> list[list[Tensor]]:
        kept = (self.true, self.predicted, self.confidence, self.undefined)
        return [[part.cpu() for part in column] for column in kept]

    def append(self, columns: Sequence[Sequence[Tensor]]) -> None:
        kept = (self.true, self.predicted, self.confidence, self.undefined)
        for column, more in zip(kept, columns, strict=True):
            column.extend(more)

    def require_numbers(self, experience: int) -> None:
        undefined = torch.cat(self.undefined)
        if undefined.any():
            raise DivergedError(
                f"{int(undefined.sum())} of {len(undefined)} answers to test experience "
                f"{experience} are not finite: the weights diverged in training; lower the "
                "learning rate (strategy.lr) or the weights of penalties"
            )

    def confusion(self) -> Confusion:
        return Confusion.from_predictions(torch.cat(self.true), torch.cat(self.predicted)).cpu()

    def reliability(self) -> ReliabilityBins:
        right = torch.cat(self.true) == torch.cat(self.predicted)
        return ReliabilityBins.from_confidence(torch.cat(self.confidence), right)
