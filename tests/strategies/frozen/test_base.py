"""Ready-made strategies: used directly by Avalanche's users, and built from a configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.evaluation.metrics import accuracy_metrics
from torch import nn

from protocl import PrototypeMemory
from protocl.backbones import BackboneConfig, Classifier, build_backbone
from protocl.checks import assert_same
from protocl.config import Setup
from protocl.config.compose import load
from protocl.data import TensorData
from protocl.errors import ConfigError
from protocl.registry import STRATEGIES
from protocl.strategies import SLDA, FeCAM, InMemory, NearestMean, PrototypePlugin, RanPAC
from protocl.strategies.frozen.base import FrozenBackbone, Sums
from tests.strategies.small import (
    assert_equal_weights,
    build_net,
    build_strategy,
    quiet_evaluator,
    train_on,
    weights_of,
)

KINDS = {"nearest_mean": NearestMean, "slda": SLDA, "fecam": FeCAM, "ranpac": RanPAC}
SMALL = {"ranpac": {"projection": 100}}


def build(name: str, model: Any = None, **settings: Any) -> FrozenBackbone:
    return KINDS[name](
        model=build_net() if model is None else model,
        evaluator=quiet_evaluator(accuracy_metrics(stream=True)),
        **SMALL.get(name, {}),
        **settings,
    )


def accuracy(strategy: Any, stream: Any) -> float:
    return float(strategy.eval(stream)["Top1_Acc_Stream/eval_phase/test_stream/Task000"])


@pytest.mark.parametrize("name", KINDS)
def test_no_gradient_step_is_made(name: str, benchmark: Any) -> None:
    strategy = build(name)
    before = weights_of(strategy.model)
    train_on(strategy, benchmark.train_stream)
    strategy.eval(benchmark.test_stream)
    assert_equal_weights(strategy.model, before)
    assert strategy.clock.train_iterations == 0
    assert not any(p.requires_grad for p in strategy.model.parameters())


@pytest.mark.parametrize("name", KINDS)
def test_it_learns_and_forgets_nothing(name: str, benchmark: Any) -> None:
    strategy = build(name, nn.Sequential(nn.Flatten(), Classifier(nn.Identity(), nn.Linear(64, 6))))
    train_on(strategy, benchmark.train_stream)
    assert accuracy(strategy, benchmark.test_stream) > 0.8


@pytest.mark.parametrize("name", KINDS)
def test_the_order_and_the_cut_of_the_stream_do_not_matter(name: str, benchmark: Any) -> None:
    net = build_net()
    memories = []
    for stream in (
        benchmark.train_stream,
        reversed(list(benchmark.train_stream)),
        split_online_stream(benchmark.train_stream, experience_size=37),
    ):
        strategy = build(name, net)
        train_on(strategy, stream)
        memories.append(strategy.memory)
    for other in memories[1:]:
        assert torch.equal(memories[0].classes, other.classes)
        assert torch.equal(memories[0].counts, other.counts)
        torch.testing.assert_close(other.means, memories[0].means, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_training_again_on_the_same_experience_changes_nothing(name: str, benchmark: Any) -> None:
    strategy = build(name)
    train_on(strategy, benchmark.train_stream)
    assert strategy.memory is not None
    revision = strategy.memory.revision
    train_on(strategy, [benchmark.train_stream[2]] * 2)
    assert strategy.memory.revision == revision


def test_the_first_experience_trains_as_naive_does_and_then_nothing_moves(benchmark: Any) -> None:
    settings: dict[str, Any] = {"train_mb_size": 18, "eval_mb_size": 64}
    naive = build_strategy("naive", [], train_epochs=3, **settings)
    train_on(naive, benchmark.train_stream[:1])
    net = build_net()
    ours = SLDA(
        model=net,
        first_experience_epochs=3,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
        evaluator=quiet_evaluator(),
        **settings,
    )
    torch.manual_seed(1)
    train_on(ours, benchmark.train_stream[:1])
    assert_equal_weights(ours.model, naive.model)
    assert ours.frozen
    iterations = ours.clock.train_iterations
    train_on(ours, benchmark.train_stream[1:])
    ours.eval(benchmark.test_stream)
    assert_equal_weights(ours.model, naive.model)
    assert ours.clock.train_iterations == iterations
    assert not any(module.training for module in ours.model.modules())


def test_statistics_of_the_first_experience_are_those_of_the_trained_backbone(
    benchmark: Any, train_data: TensorData
) -> None:
    net = build_net()
    strategy = NearestMean(
        model=net,
        first_experience_epochs=2,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        evaluator=quiet_evaluator(),
    )
    train_on(strategy, benchmark.train_stream)
    with torch.no_grad():
        expected = PrototypeMemory(16).update(net.eval().features(train_data.x), train_data.y)
    assert strategy.memory is not None
    torch.testing.assert_close(strategy.memory.means, expected.means, rtol=1e-5, atol=1e-6)


def test_it_composes_with_other_plugins(benchmark: Any) -> None:
    other = PrototypePlugin()
    strategy = build("slda", plugins=[other, InMemory()])
    train_on(strategy, benchmark.train_stream)
    assert other.memory is not None
    assert strategy.memory is not None
    assert torch.equal(other.memory.counts, strategy.memory.counts)
    assert strategy.head is strategy.prototypes.head


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_experience_epochs": 2}, "first_experience_epochs=2 needs an optimizer"),
        ({"first_experience_epochs": -1}, "first_experience_epochs=-1: expected 0 or more"),
    ],
)
def test_impossible_settings_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NearestMean(model=build_net(), **settings)


def test_a_misspelt_keyword_is_an_error() -> None:
    with pytest.raises(TypeError, match="shrinkag"):
        SLDA(model=build_net(), shrinkag=0.1)


# -- from a configuration --------------------------------------------------------------------


def setup_of(data: TensorData, **settings: Any) -> Setup:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(name="identity"), tuple(data.x.shape[1:]), 0)
    model = Classifier(backbone, nn.Linear(backbone.feature_dim, 6))
    defaults: dict[str, Any] = {
        "model": model,
        "feature_dim": backbone.feature_dim,
        "n_classes": 6,
        "device": torch.device("cpu"),
        "seed": 5,
        "plugins": [],
        "evaluator": quiet_evaluator(accuracy_metrics(stream=True)),
        "fingerprint": "of the backbone",
    }
    return Setup(**{**defaults, **settings})


def configured(name: str, *settings: str) -> Any:
    (config,) = load([f"strategy={name}", *settings])
    return config.strategy


FEW = {"ranpac": ["strategy.head.projection=100"]}

TRAINED = {"aper", "il2a", "napa_vq", "pass", "prd", "protocl"}
"""Need a backbone with weights to train: configured and run in test files of their own."""


@pytest.mark.parametrize("kind", ["images", "features"])
@pytest.mark.parametrize("name", sorted(set(STRATEGIES.names()) - TRAINED))
def test_every_registered_strategy_learns(
    name: str, kind: str, train_data: TensorData, test_data: TensorData
) -> None:
    if kind == "features":
        train_data, test_data = (TensorData(d.x.flatten(1), d.y) for d in (train_data, test_data))
    benchmark = nc_benchmark(train_data, test_data, n_experiences=3, task_labels=False, seed=0)
    config = configured(name, *FEW.get(name, []))
    assert (config.name, bool(config.info.title)) == (name, True)
    strategy = config.build(setup_of(train_data))
    for seen, experience in enumerate(benchmark.train_stream):
        train_on(strategy, [experience])
        result = accuracy(strategy, benchmark.test_stream[: seen + 1])
        # Classes of one experience are told apart; those of all only by who keeps something.
        assert result > (0.65 if name not in ("naive", "lwf", "ewc") else 0.9 / (seen + 1) - 0.05)


@pytest.mark.parametrize("name", KINDS)
def test_the_configuration_sets_what_it_says(name: str, train_data: TensorData) -> None:
    strategy = configured(name, "strategy.eval_mb_size=17").build(setup_of(train_data))
    assert type(strategy.head) is type(build(name).head)
    assert strategy.eval_mb_size == 17
    assert strategy.prototypes.fingerprint == "of the backbone"
    assert any(isinstance(plugin, InMemory) for plugin in strategy.plugins)


def test_settings_reach_the_head(train_data: TensorData) -> None:
    def head(name: str, *settings: str) -> Any:
        return configured(name, *settings).build(setup_of(train_data)).head

    cosine = head(
        "nearest_mean", "strategy.head.metric=cosine", "strategy.head.normalize_input=true"
    )
    assert (cosine.metric, cosine.normalize_input) == ("cosine", True)
    assert head("slda", "strategy.head.shrinkage=auto").shrinkage == "auto"
    assert head("slda", "strategy.head.shrinkage=0.25").shrinkage == 0.25
    assert head("ranpac", "strategy.head.projection=null").projection is None
    assert head("ranpac").seed == 5
    assert head("ranpac", "strategy.head.regularization=3").regularization == 3
    fecam = head("fecam", "strategy.head.shrinkage=[2,1]", "strategy.head.tukey=null")
    assert (fecam.shrinkage, fecam.tukey) == ((2.0, 1.0), None)


def test_a_backbone_that_is_trained_has_no_fingerprint_yet(train_data: TensorData) -> None:
    config = configured("slda", "strategy.first_experience_epochs=2")
    strategy = config.build(setup_of(train_data))
    assert config.trains_backbone
    assert strategy.prototypes.fingerprint is None
    assert strategy.train_epochs == 2
    assert not configured("slda").trains_backbone


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["strategy.head.shrinkage=some"],
            "strategy.head.shrinkage=some: expected a number or auto",
        ),
        (["strategy.first_experience_epochs=-2"], "first_experience_epochs=-2"),
        (
            ["strategy.first_experience_epochs=1", "strategy.optimizer=lbfgs"],
            "strategy.optimizer=lbfgs: expected sgd or adam",
        ),
    ],
)
def test_impossible_configurations_are_errors(
    settings: list[str], message: str, train_data: TensorData
) -> None:
    with pytest.raises(ConfigError, match=message):
        configured("slda", *settings).build(setup_of(train_data))


@pytest.mark.parametrize("name", KINDS)
def test_in_fixed_point_every_cut_of_the_stream_gives_the_same_bits(
    name: str, benchmark: Any
) -> None:
    net = build_net()
    memories = []
    for stream in (
        benchmark.train_stream,
        split_online_stream(benchmark.train_stream, experience_size=37),
    ):
        strategy = build(name, net, sums=Sums(exact=True, step=2.0**-8), eval_mb_size=240)
        train_on(strategy, stream)
        memories.append(strategy.memory)
    assert memories[0].exact
    assert memories[0].step == 2.0**-8
    assert_same(memories[1], memories[0], "another cut of the stream", bits=True)
