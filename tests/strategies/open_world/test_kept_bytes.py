"""What methods that train on unlabelled samples keep of a class, in bytes, is what they state."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from protocl.strategies import GPC, ProtoGCD
from protocl.strategies.open_world.gpc import GPCConfig, GPCPlugin
from protocl.strategies.open_world.protogcd import ProtoGCDConfig, ProtoGCDPlugin
from tests.strategies.small import build_net, quiet_evaluator, train_on
from tests.strategies.test_kept_state import evaluated, tensors


@pytest.mark.parametrize(
    ("made", "plugin", "config"),
    [(GPC, GPCPlugin, GPCConfig), (ProtoGCD, ProtoGCDPlugin, ProtoGCDConfig)],
    ids=["gpc", "protogcd"],
)
def test_one_more_class_costs_the_bytes_that_are_stated(
    made: Any, plugin: Any, config: Any, benchmark: Any
) -> None:
    method, model, size = plugin(), build_net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    strategy = made(
        model=model, optimizer=optimizer, method=method, train_mb_size=20,
        evaluator=quiet_evaluator(),
    )  # fmt: skip
    for experience in benchmark.train_stream:
        train_on(strategy, [experience])
        states = (method.state_dict() | {"projector": None}, strategy.prototypes.state_dict())
        size.append(sum(tensor.nbytes for state in states for tensor in tensors(state)))
    assert size[2] - size[1] == 2 * evaluated(config.info.bytes_per_class, D=16)
