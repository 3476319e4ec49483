"""A run whose backbone stays and whose features were computed beforehand: no host is needed.

The way of the data is short enough to be seen whole: the stream gives mini-batches of features, the
learner sums them up and answers, the answers are counted. An Avalanche strategy on the same
settings does the same sums in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from protocl.config import ExperimentConfig
from protocl.config.schema import FeatureLearner
from protocl.data.experiences import ClassStream, Samples
from protocl.memory import PrototypeMemory
from protocl.metrics.detection import Detection
from protocl.metrics.history import Evaluation, History
from protocl.metrics.recorder import EvaluationRecorder
from protocl.open_world.parts.beside import PartsBeside
from protocl.open_world.scores import known_scores, reported_scores
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
        self.detection: list[dict[str, Detection]] = []
        wanted = run.config.unknown_parts if run.config.unknown else 1
        self.parts = PartsBeside(wanted, run.config.seed) if wanted > 1 else None
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
                if self.run.config.unknown:
                    self._detect(t)
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
        self.detection, self.parts = state["detection"], state["parts"]

    @torch.no_grad()
    def _learn(self, t: int) -> None:
        self._tell("train")
        with self.run.phases.phase("train", t):
            self.learner.learn(self._features(self.prepared.stream.train(t)))
            if self.parts is not None:
                features, labels, _ = zip(
                    *self._features(self.prepared.stream.train(t)), strict=True
                )
                self.parts.learn(self._memory(), torch.cat(features).cpu(), torch.cat(labels).cpu())

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

    @torch.no_grad()
    def _detect(self, t: int) -> None:
        """Tell test samples of the classes known after experience ``t`` from those to come."""
        stream = self.prepared.stream
        batches = [
            (features.cpu(), i <= t)
            for i in range(len(stream))
            for features, *_ in self._features(stream.test(i))
        ]
        features = torch.cat([f for f, _ in batches])
        scores = known_scores(self._memory(), features)
        if self.parts is not None:
            scores |= self.parts.scores(features)
        known = torch.cat([torch.full((len(f),), seen) for f, seen in batches])
        self.detection.append(reported_scores(scores, known))

    def _memory(self) -> PrototypeMemory:
        """The statistics so far, on the host."""
        memory = self.learner.memory
        assert memory is not None  # an experience has been learned
        return memory.copy().cpu()

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
        state = {
            "learner": self.learner,
            "history": json.dumps(self.history.to_dict()),
            "detection": self.detection,
            "parts": self.parts,
        }
        self.run.save(len(self.history.evaluations), state)

    def _result(self) -> dict[str, Any]:
        result = build_result(self.run.config, self.prepared, self.history, self.learner.memory)
        if self.run.config.unknown:
            result["detection"] = [
                {name: asdict(found) for name, found in each.items()} for each in self.detection
            ]
        return result

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
