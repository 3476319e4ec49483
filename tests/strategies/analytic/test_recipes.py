"""Published ridge regressions as strategies, and the same heads in a federation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from protocl.backbones import Classifier
from protocl.config.compose import load
from protocl.federation.config.compose import load as load_federation
from protocl.federation.runner.run import run_federation
from protocl.heads import Ridge
from protocl.registry import STRATEGIES
from protocl.runner.folders import open_run
from protocl.strategies import ACIL, AFL, AIR, Fed3R, FlyCL
from tests.strategies.small import build_net, quiet_evaluator, train_on

KINDS = {"fed3r": Fed3R, "afl": AFL, "acil": ACIL, "air": AIR, "flycl": FlyCL}
SMALL = {
    "acil": {"map": "relu_linear:dim=100"},
    "air": {"map": "relu_linear:dim=100"},
    "flycl": {"map": "top_k:dim=100:degree=9"},
}


def build(name: str, **settings: Any) -> Any:
    model = nn.Sequential(nn.Flatten(), Classifier(nn.Identity(), nn.Linear(64, 6)))
    return KINDS[name](
        model=model, evaluator=quiet_evaluator(), **{**SMALL.get(name, {}), **settings}
    )


@pytest.mark.parametrize("name", KINDS)
def test_no_order_of_experiences_matters(name: str, benchmark: Any) -> None:
    answers, images = [], torch.stack([x for x, *_ in benchmark.test_stream[0].dataset])
    for stream in (benchmark.train_stream, list(benchmark.train_stream)[::-1]):
        strategy = build(name, dtype=torch.float64)
        train_on(strategy, stream)
        answers.append(strategy.head.fit(strategy.memory)(images.flatten(1)))
    torch.testing.assert_close(*answers, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_its_configuration_makes_it_with_the_seed_of_the_run(name: str) -> None:
    (config,) = load([f"strategy={name}", "seed=7", "benchmark=digits"])
    made = STRATEGIES.get(name)().head.build(seed=7)
    given = config.strategy.head.build(seed=7)
    assert given.get_params() == made.get_params()
    bare = KINDS[name](model=build_net(), evaluator=quiet_evaluator(), seed=7).head
    assert bare.get_params() == made.get_params()
    if made.map is not None:
        assert "seed=7" in made.feature_map(64).spec


def test_a_federation_takes_the_same_settings_and_gives_what_one_place_gives(
    tmp_path: Path,
) -> None:
    settings = [
        "map=top_k:dim=30:degree=9", "regularization=0.1", "balance=class", "bias=true",
        "normalize=true",
    ]  # fmt: skip
    words = [f"method.head.{setting}" for setting in settings]
    (config,) = load_federation(
        ["federation=digits", f"output={tmp_path}", "method.head=ridge", "verify=true", *words]
    )
    compared = run_federation(config, open_run(config))["federation"]["one_place"]
    assert compared["identical"]
    assert compared["accuracy"] == compared["federated_accuracy"] > 0.6


def test_balance_raises_the_rare_classes_of_a_long_tail() -> None:
    """Overlapping classes of 200 and of 6 samples, as many of each in the test."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 10, generator=generator)

    def drawn(counts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(6).repeat_interleave(torch.tensor(counts))
        return centres[labels] + torch.randn(len(labels), 10, generator=generator), labels

    (x, y), (queries, right) = drawn([200] * 3 + [6] * 3), drawn([300] * 6)
    found = {}
    for balance in ("none", "shared", "class"):
        head = Ridge(regularization=0.1, balance=balance)
        head.fit(head.new_memory(10).update(x, y))
        hits = head.predict(queries) == right
        found[balance] = float(hits[right >= 3].double().mean())
    assert min(found["shared"], found["class"]) > found["none"] + 0.1
    assert abs(found["shared"] - found["class"]) < 0.1
