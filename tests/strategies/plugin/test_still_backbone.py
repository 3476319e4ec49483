from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from protocl.strategies import PrototypePlugin
from tests.strategies.small import build_strategy, outputs_at_eval, train_on, weights_of


class Average(nn.Module):
    """Subtracts a moving average, in training mode or (``stubborn``) always."""

    mean: Tensor

    def __init__(self, stubborn: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))
        self.stubborn = stubborn

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.stubborn:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return x - self.mean


def frozen(*layers: nn.Module, trainable: bool = False) -> nn.Module:
    body = nn.Sequential(nn.Flatten(), *layers).requires_grad_(trainable)
    return nn.Sequential(body, nn.Linear(16, 6))


LAYERS: dict[str, Any] = {
    "batch norm": lambda: [nn.Linear(64, 16), nn.BatchNorm1d(16)],
    "batch norm without weights": lambda: [nn.Linear(64, 16), nn.BatchNorm1d(16, affine=False)],
    "instance norm": lambda: [
        nn.Linear(64, 16), nn.Unflatten(1, (4, 4)),
        nn.InstanceNorm1d(4, track_running_stats=True), nn.Flatten(),
    ],
    "spectral norm": lambda: [spectral_norm(nn.Linear(64, 16))],
    "moving average": lambda: [nn.Linear(64, 16), Average()],
}  # fmt: skip


@pytest.mark.parametrize("collect", ["extra_pass", "training"])
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("host", ["naive", "gem"])  # GEM runs the model between its steps too
def test_a_frozen_backbone_stays_and_its_host_is_told(
    host: str, layers: str, collect: Any, benchmark: Any
) -> None:
    model = frozen(*LAYERS[layers]())
    before = weights_of(model[0])
    strategy = build_strategy(host, [PrototypePlugin(collect=collect)], model)
    with pytest.warns(UserWarning, match="weights are frozen"):
        strategy.train(benchmark.train_stream[0])
    train_on(strategy, benchmark.train_stream[1:])
    for name, value in model[0].state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(module.training for module in model.modules())


def test_prototypes_are_those_of_one_backbone(benchmark: Any) -> None:
    answers = []
    for epochs in (0, 2):
        torch.manual_seed(0)
        strategy = build_strategy(
            "naive", [PrototypePlugin()], frozen(*LAYERS["batch norm"]()), train_epochs=epochs
        )
        train_on(strategy, benchmark.train_stream)
        answers.append(torch.cat(outputs_at_eval(strategy, benchmark.test_stream)))
    assert torch.equal(*answers)


def test_what_moves_in_evaluation_mode_too_is_said(benchmark: Any) -> None:
    plugin = PrototypePlugin()
    model = frozen(nn.Linear(64, 16), Average(stubborn=True))
    strategy = build_strategy("naive", [plugin], model)
    with pytest.warns(UserWarning, match=r"0\.2\.mean moves even in evaluation mode"):
        strategy.train(benchmark.train_stream[0])
    assert plugin.still is not None
    assert plugin.still.moved


@pytest.mark.parametrize("trainable", [True, False])
def test_nothing_is_said_without_a_reason(trainable: bool, benchmark: Any) -> None:
    layers = LAYERS["batch norm"]() if trainable else [nn.Linear(64, 16)]
    model = frozen(*layers, trainable=trainable)
    before = weights_of(model)
    strategy = build_strategy("naive", [PrototypePlugin()], model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="the backbone's weights")
        strategy.train(benchmark.train_stream[0])
    if trainable:
        assert not torch.equal(model[0][2].running_mean, before["0.2.running_mean"])
