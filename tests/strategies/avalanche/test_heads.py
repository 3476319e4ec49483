"""Avalanche's own classifiers from a configuration, beside ours on the same features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from avalanche.training import Naive, StreamingLDA

from protocl import heads
from protocl.data import TensorData
from tests.strategies.frozen.test_base import configured, setup_of
from tests.strategies.small import CLASSES, outputs_at_eval, train_on


def outputs(name: str, benchmark: Any, train_data: TensorData) -> torch.Tensor:
    """Outputs for the test stream after all experiences of a stream without repeated classes."""
    strategy = configured(name).build(setup_of(train_data))
    train_on(strategy, benchmark.train_stream)
    return torch.cat(outputs_at_eval(strategy, benchmark.test_stream))[:, :CLASSES]


def ours(head: heads.Head, benchmark: Any) -> torch.Tensor:
    memory = head.new_memory(64)
    for experience in benchmark.train_stream:
        for x, y, *_ in experience.dataset.eval():
            memory.update(x.flatten()[None], torch.tensor([int(y)]))
    test = [x.flatten() for e in benchmark.test_stream for x, *_ in e.dataset.eval()]
    return head.fit(memory)(torch.stack(test))


@pytest.mark.parametrize(
    ("name", "head", "tolerance"),
    [
        ("avalanche_ncm", heads.NearestMean(normalize_input=True, normalize_mean=True), 1e-4),
        ("avalanche_fecam", heads.Mahalanobis.avalanche(), 2e-2),
    ],
)
def test_classes_that_come_once_are_classified_as_by_ours(
    name: str, head: heads.Head, tolerance: float, benchmark: Any, train_data: TensorData
) -> None:
    theirs, mine = outputs(name, benchmark, train_data), ours(head, benchmark)
    if name == "avalanche_ncm":
        theirs = -theirs.square()
    torch.testing.assert_close(theirs, mine, rtol=tolerance, atol=tolerance)


def test_its_streaming_covariance_is_that_of_our_comparison_mode(
    benchmark: Any, train_data: TensorData
) -> None:
    strategy = configured("avalanche_slda").build(setup_of(train_data))
    seen = []

    class Record:
        def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            seen.append((strategy.mb_x.flatten(1), strategy.mb_y))

    strategy.plugins.append(Record())
    train_on(strategy, benchmark.train_stream)
    memory = heads.LinearDiscriminant(streaming=True).new_memory(64)
    for features, labels in seen:
        memory.update(features, labels)
    torch.testing.assert_close(
        strategy.Sigma.double(), memory.scatter() / memory.total, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [("avalanche_ncm", Naive), ("avalanche_fecam", Naive), ("avalanche_slda", StreamingLDA)],
)
def test_it_is_avalanches_own_class_over_a_frozen_backbone(
    name: str, kind: type, train_data: TensorData
) -> None:
    config = configured(name)
    assert type(config.build(setup_of(train_data))) is kind
    assert not config.trains_backbone
