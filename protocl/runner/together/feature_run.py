"""A run on the features of a backbone that stays, whose sums and answers are shared out.

Each process takes successive mini-batches of an experience, the same ones that a single process
would make. What they sum up is added in the order of ranks, in fixed point with the same bits
whatever their number; the test samples are answered likewise, and the answers put in order again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from protocl.config import ExperimentConfig
from protocl.config.schema import SharedLearner
from protocl.data.experiences import Samples
from protocl.distributed.collectives import gathered, share
from protocl.memory import PrototypeMemory
from protocl.metrics.history import Evaluation
from protocl.runner.feature_run import FeatureRun
from protocl.runner.prepare import Prepared
from protocl.runner.together.context import SharedContext


class SharedFeatureRun(FeatureRun):
    """A :class:`.FeatureRun` on each of several processes.

    Args:
        run: its surroundings.
        prepared: stream and model, the same on all.
        learner: before its first experience.
    """

    def __init__(
        self, run: SharedContext[ExperimentConfig], prepared: Prepared, learner: SharedLearner
    ) -> None:
        super().__init__(run, prepared, learner)
        self.leads = run.leads

    @torch.no_grad()
    def _learn(self, t: int) -> None:
        self._tell("train")
        samples = self.prepared.stream.train(t)
        with self.run.phases.phase("train", t):
            learner = cast(SharedLearner, self.learner)
            learner.learn_share(self._features(samples), *_classes(samples), _added_up)

    def _features(self, samples: Samples) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The mini-batches of this process; where there are none, one without samples."""
        parts = samples.rows.split(self.run.config.strategy.eval_mb_size)
        for rows in share(parts) or [samples.rows[:0]]:
            yield from super()._features(Samples(samples.x, samples.y, rows, samples.task))

    def _counted(self) -> Evaluation:
        for noted in gathered(self.recorder.take()):
            self.recorder.put(noted)
        return super()._counted()

    def _write_model(self) -> None:
        if self.leads:
            super()._write_model()


def _classes(samples: Samples) -> tuple[Tensor, Tensor]:
    """The classes of an experience, and their task labels."""
    classes = torch.tensor(samples.classes)
    return classes, torch.full_like(classes, samples.task)


def _added_up(memory: PrototypeMemory) -> Any:
    return memory.all_reduce()
