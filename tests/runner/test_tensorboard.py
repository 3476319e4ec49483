"""The events of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.evaluation.metrics import loss_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from protocl.data import TensorData
from protocl.runner.tensorboard import EpochLoss, EventLogger


def test_the_epoch_loss_is_avalanches(tmp_path: Path) -> None:
    """Batches of unequal size, two experiences of two epochs."""
    torch.manual_seed(0)
    x, y = torch.randn(100, 6), torch.arange(100) % 4
    data = TensorData(x, y)
    benchmark = nc_benchmark(data, data, n_experiences=2, task_labels=False)
    theirs: list[float] = []

    class Watch(EvaluationPlugin):
        def publish_metric_value(self, value: Any) -> None:
            theirs.append(float(value.value))
            super().publish_metric_value(value)

    logger = EventLogger(SummaryWriter(str(tmp_path)))
    model = nn.Linear(6, 4)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32,
        train_epochs=2,
        plugins=[EpochLoss(logger)],
        evaluator=Watch(loss_metrics(epoch=True)),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    logger.flush()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars(EpochLoss.TAG)
    assert [event.step for event in events] == [2, 4, 6, 8]
    assert [event.value for event in events] == pytest.approx(theirs, rel=1e-6)
    logger.close()
