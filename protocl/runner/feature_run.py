"""A run whose backbone stays and whose features were computed beforehand: no host is needed.

The way of the data is short enough to be seen whole: the stream gives mini-batches of features, the
learner sums them up and answers, the answers are counted. An Avalanche strategy on the same
settings does the same sums in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from protocl.config import ExperimentConfig
from protocl.config.schema import FeatureLearner
from protocl.data.experiences import ClassStream, Samples
from protocl.metrics.history import Evaluation, History
from protocl.metrics.recorder import EvaluationRecorder
from protocl.runner.context import RunContext
from protocl.runner.model import write_model
from protocl.runner.prepare import Prepared
from protocl.runner.result import build_result
from protocl.trackers import Trackers, open_trackers


class FeatureRun:
    """The state of one run; :meth:`finish` takes it from wherever it stands to its end.

    Args:
        run: its surroundings.
        prepared: stream and model; the model's backbone gives the features.
        learner: before its first experience.
    """

    def __init__(
        self, run: RunContext[ExperimentConfig], prepared: Prepared, learner: FeatureLearner
    ) -> None:
        self.run = run
        self.prepared = prepared
        self.learner = learner
        self.history = History()
        self.recorder = EvaluationRecorder()
        state = run.take_up()
        if state is not None:
            self._continue(state)
        done = len(self.history.evaluations)
        self.events = open_trackers(run.config, run.folder, done)

    def finish(self) -> dict[str, Any]:
        """Learn and evaluate the experiences that remain, then write the model."""
        try:
            for t in range(len(self.history.evaluations), len(self.prepared.stream)):
                self._learn(t)
                self._evaluate(t)
                self._save()
            self._tell("report")
            self._write_model()
            return self._result()
        finally:
            self.events.close()

    def _write_model(self) -> None:
        write_model(
            self.run.folder,
            self.learner.final_answer(),
            self.prepared.backbone,
            self.prepared.sample_shape,
            self.prepared.class_names,
            batch_size=self.run.config.settled_batch,
        )

    def _continue(self, state: dict[str, Any]) -> None:
        self.learner = state["learner"]
        self.history = History.from_dict(json.loads(state["history"]))

    @torch.no_grad()
    def _learn(self, t: int) -> None:
        self._tell("train")
        with self.run.phases.phase("train", t):
            self.learner.learn(self._features(self.prepared.stream.train(t)))

    @torch.no_grad()
    def _evaluate(self, t: int) -> None:
        """Answer the test samples of all experiences up to ``t``."""
        self._tell("eval")
        with self.run.phases.phase("eval", t):
            self.learner.to(self.run.device)
            for i in range(t + 1):
                for features, labels, tasks in self._features(self.prepared.stream.test(i)):
                    logits = self.learner.logits(features, tasks, self.prepared.n_classes)
                    self.recorder.note(i, logits, labels)
            self.history.append(self._counted())
        log_evaluation(self.events, self.history, self.prepared.stream)

    def _counted(self) -> Evaluation:
        return self.recorder.conclude()

    def _features(self, samples: Samples) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Features, labels and task labels in the mini-batches of an evaluation."""
        backbone = self.prepared.model.backbone.eval()
        for batch in samples.split(self.run.config.strategy.eval_mb_size):
            x, labels, tasks = (part.to(self.run.device) for part in batch)
            yield backbone(x).flatten(1), labels, tasks

    def _save(self) -> None:
        """Write the result so far, then the checkpoint from which the run can continue."""
        self.events.flush()
        self.run.write(self._result(), complete=False)
        # As text: a pickle of its many small numbers takes longer than an experience.
        state = {"learner": self.learner, "history": json.dumps(self.history.to_dict())}
        self.run.save(len(self.history.evaluations), state)

    def _result(self) -> dict[str, Any]:
        return build_result(self.run.config, self.prepared, self.history, self.learner.memory)

    def _tell(self, phase: str) -> None:
        done, total = len(self.history.evaluations), len(self.prepared.stream)
        self.run.tell(phase, done, total=total, accuracy=self.history.latest)


def log_evaluation(events: Trackers, history: History, stream: ClassStream) -> None:
    """Log the last evaluation under the names, and at the steps, of Avalanche's metrics.

    Avalanche counts training iterations, of which there are none; ``stream_accuracy`` counts
    experiences, so that it is a curve.
    """
    summary, t = history.summary(), len(history.evaluations) - 1
    where = "eval_phase/test_stream"
    for i, accuracy in enumerate(summary["accuracy_matrix"][t]):
        events.add_scalar(f"Top1_Acc_Exp/{where}/Task{stream.task(i):03d}/Exp{i:03d}", accuracy, 0)
    last = summary["stream_accuracy"][t]
    events.add_scalar(f"Top1_Acc_Stream/{where}/Task{stream.task(t):03d}", last, 0)
    events.add_scalar(f"StreamForgetting/{where}", summary["forgetting"], 0)
    events.add_scalar(f"StreamBWT/{where}", summary["backward_transfer"], 0)
    events.add_scalar("stream_accuracy", last, t)
