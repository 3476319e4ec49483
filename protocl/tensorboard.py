"""TensorBoard events of a run, through Avalanche's own logger and metrics."""

from __future__ import annotations

from collections.abc import Sequence

from avalanche.evaluation.metrics import (
    accuracy_metrics,
    bwt_metrics,
    forgetting_metrics,
    loss_metrics,
)
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin
from tensorboard.compat.proto.event_pb2 import Event, SessionLog


class EventLogger(TensorboardLogger):
    """Avalanche's logger, whose events can be continued by another process."""

    def purge(self, step: int) -> None:
        """Have TensorBoard hide what earlier files in the folder say of ``step`` and later."""
        writer = self.writer._get_file_writer()
        # What SummaryWriter(purge_step=step) writes, for a file that is open already.
        writer.add_event(Event(step=step, file_version="brain.Event:2"))
        writer.add_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

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


def evaluation_plugin(logger: EventLogger) -> EvaluationPlugin:
    """Accuracy after each experience, forgetting and backward transfer; the loss of each epoch."""
    return EvaluationPlugin(
        loss_metrics(epoch=True),
        accuracy_metrics(experience=True, stream=True),
        forgetting_metrics(stream=True),
        bwt_metrics(stream=True),
        loggers=[logger],
        strict_checks=False,
    )
