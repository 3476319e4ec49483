"""Avalanche's own strategies from a configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.training import EWC, Cumulative, ICaRL, JointTraining, LwF, Naive, Replay
from torch import nn

from protocl.data import TensorData
from protocl.strategies import InMemory
from protocl.strategies.baselines import Joint
from tests.strategies.frozen.test_base import configured, setup_of
from tests.strategies.small import assert_equal_weights, quiet_evaluator, train_on

KINDS = {
    "naive": Naive,
    "replay": Replay,
    "lwf": LwF,
    "ewc": EWC,
    "icarl": ICaRL,
    "cumulative": Cumulative,
    "joint": Joint,
}


@pytest.mark.parametrize("name", KINDS)
def test_it_is_avalanches_own_class_with_the_settings(name: str, train_data: TensorData) -> None:
    config = configured(
        name, "strategy.train_epochs=3", "strategy.lr=0.5", "strategy.weight_decay=0.1"
    )
    strategy = config.build(setup_of(train_data))
    assert type(strategy) is KINDS[name]
    assert strategy.train_epochs == 3
    (group,) = strategy.optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.1)
    assert config.trains_backbone


def test_adam_can_be_chosen(train_data: TensorData) -> None:
    strategy = configured("naive", "strategy.optimizer=adam").build(setup_of(train_data))
    assert type(strategy.optimizer) is torch.optim.Adam


@pytest.mark.parametrize("name", KINDS)
def test_a_frozen_backbone_stays_as_it_is(
    name: str, benchmark: Any, train_data: TensorData
) -> None:
    config = configured(name, "strategy.freeze_backbone=true", "strategy.train_epochs=1")
    assert not config.trains_backbone
    setup = setup_of(train_data)
    setup.model.backbone.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64))
    before = setup.model.backbone.network[1].weight.clone()
    strategy = config.build(setup)
    train_on(strategy, benchmark.train_stream)
    weights = [
        p for name, p in strategy.model.named_parameters() if name.endswith("network.1.weight")
    ]
    assert len(weights) == 1
    assert torch.equal(weights[0], before)


@pytest.mark.parametrize("name", KINDS)
def test_all_its_data_is_served_from_memory(
    name: str, benchmark: Any, train_data: TensorData
) -> None:
    reasons = []

    class Watch:
        def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            (plugin,) = (p for p in strategy.plugins if isinstance(p, InMemory))
            reasons.append(plugin.declined)

    strategy = configured(name, "strategy.train_epochs=1").build(
        setup_of(train_data, plugins=[Watch()])
    )
    train_on(strategy, benchmark.train_stream)
    assert reasons
    assert set(reasons) == {None}


def test_joint_ends_as_avalanches_joint_training_on_the_whole_stream(
    benchmark: Any, train_data: TensorData
) -> None:
    joint = configured("joint", "strategy.train_epochs=2").build(setup_of(train_data))
    train_on(joint, benchmark.train_stream[:2])
    torch.manual_seed(9)
    train_on(joint, benchmark.train_stream[2:])
    model = setup_of(train_data).model
    theirs = JointTraining(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=64,
        train_epochs=2,
        evaluator=quiet_evaluator(),
    )
    torch.manual_seed(9)
    theirs.train(benchmark.train_stream)
    assert_equal_weights(joint.model, theirs.model)


@pytest.mark.parametrize("name", ["naive", "lwf"])
def test_the_first_experience_may_have_epochs_of_its_own(name: str, train_data: TensorData) -> None:
    config = configured(
        name,
        "strategy.first_experience_epochs=3",
        "strategy.train_epochs=2",
        "strategy.milestones=[0]",
        "strategy.lr=0.5",
    )
    setup = setup_of(train_data)
    rates: list[float] = []

    class Look:
        def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            rate = strategy.optimizer.param_groups[0]["lr"]
            if strategy.clock.train_exp_iterations == 0 or rate != rates[-1]:
                rates.append(rate)

        def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
            epochs.append(strategy.clock.train_exp_epochs)

    epochs: list[int] = []
    setup.plugins = [Look()]
    strategy = config.build(setup)
    stream = nc_benchmark(train_data, train_data, 2, task_labels=False, seed=0).train_stream
    for experience in stream:
        strategy.train(experience, eval_streams=[])
    assert epochs == [0, 1, 2, 0, 1]
    assert rates == pytest.approx([0.5, 0.05, 0.5, 0.05])
