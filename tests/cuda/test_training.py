"""Strategies on the device: steps that wait for nothing, data that lie there, answers that fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.core import SupervisedPlugin
from torch import nn

from protocl.backbones import BackboneConfig, Classifier, build_backbone
from protocl.registry import STRATEGIES
from protocl.strategies.avalanche.in_memory import InMemoryLoader
from tests.strategies.frozen.test_base import configured, setup_of
from tests.strategies.small import digits, outputs_at_eval
from tests.test_host_syncs import SETTINGS, TRAINED, _whole
from tests.test_second_device import SMALL


class NoWaiting(SupervisedPlugin[Any]):
    """Lets CUDA refuse whatever would have the host wait, from the second step of an epoch on."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.homes: set[str] = set()

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.steps += 1
        if isinstance(strategy.dataloader, InMemoryLoader):
            self.homes.add(strategy.dataloader.rows.leaf.x.device.type)
        if strategy.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def trained(name: str, settings: list[str], device: torch.device, plugins: list[Any]) -> Any:
    torch.manual_seed(0)
    train, test = digits(train=True), digits(train=False)
    benchmark = nc_benchmark(train, test, 2, task_labels=False, seed=0)
    backbone = build_backbone(BackboneConfig(name="conv4", width=4), (1, 8, 8), 0)
    model = Classifier(backbone, nn.Linear(backbone.feature_dim, 6)).to(device)
    setup = setup_of(
        train, model=model, device=device, feature_dim=backbone.feature_dim, plugins=plugins
    )
    strategy = configured(name, *(f"strategy.{setting}" for setting in settings)).build(setup)
    strategy.train_epochs = min(1, strategy.train_epochs)
    strategy.train_mb_size = _whole([len(e.dataset) for e in benchmark.train_stream])
    try:
        for experience in benchmark.train_stream:
            strategy.train(experience)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return strategy, benchmark


@pytest.mark.parametrize("name", TRAINED)
def test_steps_wait_for_nothing_and_data_lie_on_the_device(device: torch.device, name: str) -> None:
    watch = NoWaiting()
    trained(name, SETTINGS.get(name, []), device, [watch])
    assert watch.steps > 1
    assert watch.homes <= {device.type}


@pytest.mark.parametrize("name", sorted(set(STRATEGIES.names()) - {"avalanche_fecam"}))
def test_every_strategy_answers(device: torch.device, name: str) -> None:
    strategy, benchmark = trained(name, SMALL.get(name, []), device, [])
    outputs = torch.cat(
        [output.cpu() for output in outputs_at_eval(strategy, benchmark.test_stream)]
    )
    assert len(outputs) == sum(len(e.dataset) for e in benchmark.test_stream)
    assert torch.isfinite(outputs[outputs > -torch.inf]).all()
