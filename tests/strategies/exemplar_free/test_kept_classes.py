"""Laws of the methods that train the backbone without exemplars: NAPA-VQ, PASS and IL2A."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import dill
import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.scenarios import split_online_stream
from torch import nn

from protocl.backbones import BackboneConfig, Classifier, build_backbone
from protocl.config import Setup
from protocl.config.compose import load
from protocl.data import TensorData
from protocl.io.checkpoint import classes_by_reference
from protocl.strategies.avalanche.in_memory import InMemory
from protocl.strategies.drift.compensation import DriftEstimator
from protocl.strategies.exemplar_free.rotations import rotated
from protocl.strategies.il2a import IL2APlugin
from protocl.strategies.napa_vq import NAPAVQLoss, NAPAVQPlugin
from protocl.strategies.pass_ import PASSPlugin
from tests.strategies.small import (
    assert_equal_weights,
    build_net,
    build_strategy,
    outputs_at_eval,
    quiet_evaluator,
    train_on,
)

Make = Callable[..., Any]
METHODS: dict[str, Make] = {
    "napa_vq": lambda **s: NAPAVQPlugin(NAPAVQLoss(k=4), code_lr=0.1, later_code_lr=0.05, **s),
    "pass": PASSPlugin,
    # At its own weights it needs a smaller learning rate than the hosts here have.
    "il2a": partial(IL2APlugin, ratio=0.1, augmentation_weight=0.5),
}


@pytest.fixture(params=sorted(METHODS))
def make(request: pytest.FixtureRequest) -> Make:
    return METHODS[request.param]


def parameters_of(plugin: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in plugin.kept.parameters.state_dict().items()}


def test_uneven_experiences_in_no_order(
    make: Make, train_data: TensorData, test_data: TensorData
) -> None:
    order = [4, 1, 5, 0, 3, 2]
    benchmark = nc_benchmark(
        train_data,
        test_data,
        n_experiences=3,
        task_labels=False,
        shuffle=False,
        fixed_class_order=order,
        per_exp_classes={0: 3, 1: 1, 2: 2},
    )
    plugin = make()
    strategy = build_strategy("naive", [plugin, InMemory()])
    for experience, expected in zip(
        benchmark.train_stream, ([1, 4, 5], [1, 4, 5, 0], [1, 4, 5, 0, 2, 3]), strict=True
    ):
        kept = None if plugin.memory is None else plugin.memory.copy()
        train_on(strategy, [experience])
        assert plugin.kept.rows.ids.tolist() == expected
        assert plugin.memory is not None
        if kept is not None:
            old = plugin.memory.subset(kept.classes)
            assert torch.equal(old.means, kept.means), "prototypes of old classes moved"
    assert int(plugin.memory.counts.sum()) == 240 * plugin.kept.views
    logits = torch.cat(outputs_at_eval(strategy, benchmark.test_stream))
    assert logits.isfinite().all()
    assert logits.shape[1] == 6


def test_its_loss_takes_the_place_of_the_criterion(make: Make, benchmark: Any) -> None:
    for host_loss in (0.0, 1.0):
        strategy = build_strategy("naive", [make(host_loss=host_loss)])
        before = copy.deepcopy(strategy.model.state_dict())
        train_on(strategy, benchmark.train_stream[:2])
        after = strategy.model.state_dict()
        assert not torch.equal(before["features.1.weight"], after["features.1.weight"])
        # Only the criterion can train the model's own classifier.
        same = torch.equal(before["classifier.weight"], after["classifier.weight"])
        assert same is (host_loss == 0.0)


def test_a_class_that_comes_back_keeps_its_row(make: Make, benchmark: Any) -> None:
    plugin = make()
    strategy = build_strategy("naive", [plugin, InMemory()])
    first, second = benchmark.train_stream[0], benchmark.train_stream[1]
    train_on(strategy, [first, second])
    ids, means, before = plugin.kept.rows.ids, plugin.kept.prototypes(), parameters_of(plugin)
    train_on(strategy, [first])
    assert torch.equal(plugin.kept.rows.ids, ids)
    again = torch.isin(ids, torch.tensor(sorted(first.classes_in_this_experience)))
    renewed = (plugin.kept.prototypes() != means).any(1).view(len(ids), -1).all(1)
    assert renewed.tolist() == again.tolist()
    assert all(value.shape == before[name].shape for name, value in parameters_of(plugin).items())


def test_unseen_classes_never_win_and_untrained_plugins_leave_the_answer(
    make: Make, benchmark: Any
) -> None:
    strategy = build_strategy("naive", [make()])
    plain = outputs_at_eval(build_strategy("naive", []), benchmark.test_stream)
    untrained = outputs_at_eval(strategy, benchmark.test_stream)
    assert all(torch.equal(*pair) for pair in zip(untrained, plain, strict=True))
    train_on(strategy, benchmark.train_stream[:1])
    seen = sorted(benchmark.train_stream[0].classes_in_this_experience)
    unseen = sorted(set(range(6)) - set(seen))
    for logits in outputs_at_eval(strategy, benchmark.test_stream):
        assert logits[:, unseen].isneginf().all()
        assert logits[:, seen].isfinite().all()


@pytest.mark.parametrize("host", ["replay", "lwf", "gem"])
def test_works_inside_other_strategies(make: Make, benchmark: Any, host: str) -> None:
    strategy = build_strategy(host, [make(), InMemory()])
    train_on(strategy, benchmark.train_stream)
    logits = torch.cat(outputs_at_eval(strategy, benchmark.test_stream))
    assert logits.shape[1] == 6
    assert logits.isfinite().all()
    assert all(not module._forward_pre_hooks for module in strategy.model.modules())


def test_a_host_that_mixes_samples_in_behind_the_plugin_is_an_error(benchmark: Any) -> None:
    strategy = build_strategy("der", [PASSPlugin()])
    with pytest.raises(RuntimeError, match="DER added samples"):
        train_on(strategy, benchmark.train_stream)


@pytest.mark.parametrize("api", ["task_benchmark", "new_benchmark"])
def test_task_labels_and_the_new_benchmark_api(
    make: Make, api: str, request: pytest.FixtureRequest
) -> None:
    benchmark = request.getfixturevalue(api)
    strategy = build_strategy("naive", [make()], train_epochs=1)
    train_on(strategy, benchmark.train_stream)
    for experience in benchmark.test_stream:
        logits = torch.cat(outputs_at_eval(strategy, experience))
        assert logits.shape[1] == 6
        if api == "task_benchmark":
            allowed = torch.tensor(sorted(experience.classes_in_this_experience))
            assert torch.isin(logits.argmax(1), allowed).all()


def test_online_stream(make: Make, benchmark: Any) -> None:
    plugin = make()
    strategy = build_strategy("naive", [plugin], train_epochs=1)
    train_on(strategy, split_online_stream(benchmark.train_stream[:2], experience_size=20))
    assert len(plugin.kept.rows) == 4
    assert (
        torch.cat(outputs_at_eval(strategy, benchmark.test_stream[:2]))
        .isfinite()
        .sum(1)
        .eq(4)
        .all()
    )


def test_state_loads_into_a_fresh_plugin_and_training_goes_on_alike(
    make: Make, benchmark: Any
) -> None:
    plugin, model = make(), build_net()
    # Without momentum, as Avalanche clears the optimizer of a strategy's first experience.
    plain = torch.optim.SGD(model.parameters(), lr=0.05)
    strategy = build_strategy("naive", [plugin], model, optimizer=plain)
    train_on(strategy, benchmark.train_stream[:2])
    file = io.BytesIO()
    torch.save(plugin.state_dict(), file)
    file.seek(0)
    fresh = make()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    copied = copy.deepcopy(model)
    plain = torch.optim.SGD(copied.parameters(), lr=0.05)
    twin = build_strategy("naive", [fresh], copied, optimizer=plain)
    features = torch.rand(5, 16)
    for ours, theirs in zip(
        fresh.class_logits(features), plugin.class_logits(features), strict=True
    ):
        assert torch.equal(ours, theirs)
    for s in (strategy, twin):
        torch.manual_seed(3)
        train_on(s, benchmark.train_stream[2:])
    assert_equal_weights(strategy.model, twin.model)
    assert_equal_weights(parameters_of(plugin), parameters_of(fresh))


def test_a_pickle_of_the_strategy_goes_on_alike(make: Make, benchmark: Any) -> None:
    """What a run that is killed and resumed relies on."""
    strategy = build_strategy("naive", [make(), InMemory()])
    train_on(strategy, benchmark.train_stream[:2])
    with classes_by_reference():
        twin = dill.loads(dill.dumps(strategy))
    for s in (strategy, twin):
        torch.manual_seed(3)
        train_on(s, benchmark.train_stream[2:])
    assert_equal_weights(strategy.model, twin.model)
    assert_equal_weights(parameters_of(strategy.plugins[0]), parameters_of(twin.plugins[0]))


def test_prototypes_may_be_carried_along_with_the_backbone(make: Make, benchmark: Any) -> None:
    plugin = make(drift=DriftEstimator("ldc", ridge=1e-3))
    strategy = build_strategy("naive", [plugin, InMemory()])
    train_on(strategy, benchmark.train_stream[:1])
    assert plugin.memory is not None
    before = plugin.memory.copy()
    train_on(strategy, benchmark.train_stream[1:2])
    moved = plugin.memory.subset(before.classes)
    assert torch.equal(moved.counts, before.counts)
    assert bool((moved.means != before.means).any(1).all())


def test_vectors_cannot_be_rotated(make: Make, train_data: TensorData) -> None:
    flat = TensorData(train_data.x.flatten(1), train_data.y)
    benchmark = nc_benchmark(flat, flat, n_experiences=3, task_labels=False, seed=0)
    plugin = make()
    if plugin.views is not rotated:
        pytest.skip("its views are not rotations, and vectors have them")
    strategy = build_strategy("naive", [plugin])
    with pytest.raises(ValueError, match=r"shape \(18, 64\) cannot be rotated"):
        train_on(strategy, benchmark.train_stream)


@pytest.mark.parametrize("name", ["napa_vq", "napa_vq_released", "pass", "il2a"])
def test_configured_strategies_train(name: str, benchmark: Any, train_data: TensorData) -> None:
    settings = ["strategy.train_epochs=2", "strategy.milestones=[0]", "strategy.drift=sdc"]
    (config,) = load([f"strategy={name}", *settings])
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(name="conv4", width=8), (1, 8, 8), 0)
    setup = Setup(
        model=Classifier(backbone, nn.Linear(backbone.feature_dim, 6)),
        feature_dim=backbone.feature_dim,
        n_classes=6,
        device=torch.device("cpu"),
        seed=0,
        plugins=[],
        evaluator=quiet_evaluator(),
    )
    strategy = config.strategy.build(setup)
    train_on(strategy, benchmark.train_stream[:2])
    logits = torch.cat(outputs_at_eval(strategy, benchmark.test_stream[:2]))
    assert logits.isfinite().sum(1).eq(4).all()
    assert strategy.memory is strategy.method.memory
    assert strategy.method.kept.drift.method == "sdc"
    # Adam begins at 1e-3, later experiences at a multiple; the decay is undone at their end.
    factor = config.strategy.later_lr_factor
    assert strategy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * factor)
