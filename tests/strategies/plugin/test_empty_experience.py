"""An experience without samples is refused by its number, before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset

from protocl.data import TensorData
from protocl.heads import NearestMean
from protocl.strategies import IL2A, PASS, PRD, PrototypePlugin
from protocl.strategies.frozen.base import FrozenBackbone
from tests.strategies.small import build_net, build_strategy, quiet_evaluator


def _trained(kind: Any) -> Any:
    model = build_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return kind(model=model, optimizer=optimizer, evaluator=quiet_evaluator())


MAKERS: dict[str, Any] = {
    "extra_pass": lambda: build_strategy("naive", [PrototypePlugin()]),
    "training": lambda: build_strategy("replay", [PrototypePlugin(collect="training")]),
    "prd": lambda: _trained(PRD),
    "pass": lambda: _trained(PASS),
    "il2a": lambda: _trained(IL2A),
    "frozen": lambda: FrozenBackbone(
        model=build_net(), head=NearestMean(), evaluator=quiet_evaluator()
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_an_empty_experience_is_named(train_data: TensorData, name: str) -> None:
    empty = TensorData(train_data.x[:0], train_data.y[:0])
    parts = [as_classification_dataset(part) for part in (train_data, empty)]
    stream = benchmark_from_datasets(train=parts).train_stream
    with pytest.raises(ValueError, match=r"experience 1 has no samples.*leave it out"):
        MAKERS[name]().train(stream[1])
