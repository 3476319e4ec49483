"""Curves of a run for its trackers, through Avalanche's own logger and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.evaluation.metric_results import AlternativeValues
from avalanche.evaluation.metrics import (
    accuracy_metrics,
    bwt_metrics,
    forgetting_metrics,
)
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin

from protocl.trackers import Trackers


class EventLogger(BaseLogger):
    """A logger of Avalanche's that passes its numbers on, and can be continued.

    Args:
        writer: the trackers of the run.
    """

    def __init__(self, writer: Trackers) -> None:
        super().__init__()
        self.writer = writer

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        """Pass a number on; Avalanche's metrics here give no pictures."""
        if isinstance(value, AlternativeValues):
            value = value.best_supported_value(float, int)
        if isinstance(value, float | int):
            self.writer.add_scalar(name, value, x_plot)

    def purge(self, step: int) -> None:
        """Have what an earlier process said of ``step`` and later forgotten."""
        self.writer.go_on(step)

    def log_curve(self, accuracies: Sequence[float], first: int = 0) -> None:
        """Log stream accuracies by experience, where Avalanche counts training iterations.

        Strategies without gradient steps have none: their points would lie on one another.

        Args:
            accuracies: one value an experience.
            first: the experience of the first value.
        """
        for t, accuracy in enumerate(accuracies, start=first):
            self.writer.add_scalar("stream_accuracy", accuracy, global_step=t)

    def flush(self) -> None:
        """Write to disk what was logged so far."""
        self.writer.flush()

    def close(self) -> None:
        """End the event file."""
        self.writer.close()


class EpochLoss:
    """Avalanche plugin that logs each epoch's mean loss.

    The same number as ``loss_metrics(epoch=True)``, whose bookkeeping in every iteration takes a
    sixth of the time of a linear layer's training. Here the device adds and is asked once an epoch.

    Args:
        logger: receives the means under :attr:`TAG`, as of Avalanche's metric.
    """

    TAG = "Loss_Epoch/train_phase/train_stream"

    def __init__(self, logger: EventLogger) -> None:
        self._logger = logger
        self._total: torch.Tensor | float = 0.0
        self._samples = 0

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Start a new mean."""
        self._total, self._samples = 0.0, 0

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Add the loss of the mini-batch, weighted by its samples."""
        samples = len(strategy.mb_y)
        self._total = self._total + strategy.loss.detach() * samples
        self._samples += samples

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Log the mean at the number of iterations so far."""
        if self._samples:
            mean = float(self._total) / self._samples
            self._logger.writer.add_scalar(self.TAG, mean, strategy.clock.train_iterations)


def evaluation_plugin(logger: EventLogger) -> EvaluationPlugin:
    """Accuracy after each experience, forgetting and backward transfer."""
    return EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True),
        forgetting_metrics(stream=True),
        bwt_metrics(stream=True),
        loggers=[logger],
        strict_checks=False,
    )
