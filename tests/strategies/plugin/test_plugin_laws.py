"""The laws that a plugin must keep in Avalanche, each broken once by a simpler design."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.core import SupervisedPlugin
from avalanche.models import MTSimpleMLP
from torch import nn

from protocl import PrototypeMemory
from protocl.data import TensorData
from protocl.heads import LinearDiscriminant, NearestMean, Ridge
from protocl.strategies import InMemory, PrototypePlugin
from tests.strategies.small import (
    Net,
    build_net,
    build_strategy,
    freeze,
    outputs_at_eval,
    train_on,
)

COLLECT = ["extra_pass", "training"]


def frozen_naive(*plugins: Any, **settings: Any) -> Any:
    """A strategy whose features never move, so that every order gives the same statistics."""
    return build_strategy("naive", list(plugins), freeze(build_net()), **settings)


def means_of(model: Net, data: TensorData) -> PrototypeMemory:
    """The statistics, computed without Avalanche."""
    with torch.no_grad():
        features = copy.deepcopy(model).eval().features(data.x)
    return PrototypeMemory(features.shape[1]).update(features, data.y)


# -- law 1: draw nothing from the user's random state ---------------------------------------


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_extra_pass_through_a_data_loader_draws_nothing(
    benchmark: Any, num_workers: int
) -> None:
    plugin = PrototypePlugin()
    strategy = build_strategy("naive", [plugin])
    dataset = benchmark.train_stream[0].dataset.replace_current_transform_group(nn.Identity())
    strategy.experience = SimpleNamespace(dataset=dataset)
    before = torch.get_rng_state()
    plugin.after_training_exp(strategy, num_workers=num_workers)
    assert plugin.memory is not None
    assert plugin.memory.total == len(dataset)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_draws_in_evaluation_mode_draws_from_a_copy(benchmark: Any) -> None:
    class Noisy(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + 0.1 * torch.rand_like(x))

    states = []
    for plugins in ([], [PrototypePlugin()]):
        strategy = build_strategy("naive", plugins, Noisy())
        train_on(strategy, benchmark.train_stream)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


# -- law 2: hook only while a forward pass runs ----------------------------------------------


@pytest.mark.parametrize("collect", COLLECT)
def test_no_hook_stays_on_the_model(benchmark: Any, collect: Any) -> None:
    strategy = build_strategy("lwf", [PrototypePlugin(collect=collect)])
    train_on(strategy, benchmark.train_stream[:2])
    strategy.eval(benchmark.test_stream)
    assert all(not module._forward_pre_hooks for module in strategy.model.modules())


def test_a_compiled_model_is_refused_before_training_and_evaluation(benchmark: Any) -> None:
    strategy = build_strategy("naive", [PrototypePlugin()], torch.compile(build_net()))
    with pytest.raises(ValueError, match="is compiled"):
        strategy.train(benchmark.train_stream[0])
    with pytest.raises(ValueError, match="is compiled"):
        strategy.eval(benchmark.test_stream)


# -- law 3: put back each submodule's own mode -----------------------------------------------


def test_modes_and_batch_norm_statistics_are_as_before(benchmark: Any) -> None:
    plugin = PrototypePlugin()
    strategy = build_strategy("naive", [plugin])
    train_on(strategy, benchmark.train_stream[:1])
    strategy.model.train()
    strategy.model.features[2].eval()
    modes = [module.training for module in strategy.model.modules()]
    before = copy.deepcopy(strategy.model.state_dict())
    plugin.refresh(strategy, [benchmark.train_stream[0].dataset])
    assert [module.training for module in strategy.model.modules()] == modes
    for name, value in strategy.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None or p.grad.abs().sum() > 0 for p in strategy.model.parameters())


# -- law 4: unseen classes never win ---------------------------------------------------------


@pytest.mark.parametrize("head", [NearestMean(), LinearDiscriminant(), Ridge()])
def test_unseen_classes_score_minus_infinity_and_never_win(benchmark: Any, head: Any) -> None:
    strategy = frozen_naive(PrototypePlugin(head))
    train_on(strategy, benchmark.train_stream[:1])
    seen = sorted(benchmark.train_stream[0].classes_in_this_experience)
    unseen = sorted(set(range(6)) - set(seen))
    for logits in outputs_at_eval(strategy, benchmark.test_stream):
        assert logits[:, unseen].isneginf().all()
        assert logits[:, seen].isfinite().all()


def test_a_finite_floor_gives_a_finite_loss_and_stays_below_every_seen_class(
    benchmark: Any,
) -> None:
    losses = []

    class Losses(SupervisedPlugin):
        def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
            losses.append(strategy.loss)

    strategy = frozen_naive(PrototypePlugin(floor=-1e-3), Losses())
    train_on(strategy, benchmark.train_stream[:1])
    seen = sorted(benchmark.train_stream[0].classes_in_this_experience)
    for logits in outputs_at_eval(strategy, benchmark.test_stream):
        assert (logits.argmax(1).unsqueeze(1) == torch.tensor(seen)).any(1).all()
        assert logits.isfinite().all()
    assert torch.stack(losses).isfinite().all()


# -- law 5: pad to the head's width; before any update keep the model's own output -----------


def test_the_model_answers_itself_before_the_first_experience(benchmark: Any) -> None:
    with_plugin = outputs_at_eval(
        build_strategy("naive", [PrototypePlugin()]), benchmark.test_stream
    )
    without = outputs_at_eval(build_strategy("naive", []), benchmark.test_stream)
    assert all(torch.equal(*pair) for pair in zip(with_plugin, without, strict=True))


@pytest.mark.parametrize(("outputs", "width"), [(2, 6), (6, 6), (9, 9)])
def test_logits_are_as_wide_as_the_head_and_reach_the_largest_label(
    benchmark: Any, outputs: int, width: int
) -> None:
    # The model itself could not be evaluated on labels beyond its outputs; the prototypes can.
    first = benchmark.train_stream[0]
    plugin = PrototypePlugin()
    strategy = build_strategy("naive", [plugin], build_net(classes=outputs))
    plugin.refresh(strategy, [first.dataset])
    logits = torch.cat(outputs_at_eval(strategy, benchmark.test_stream))
    assert logits.shape[1] == width


# -- law 6: leave the mini-batch as others expect it -----------------------------------------


class TwoViews(SupervisedPlugin):
    """Doubles the batch for the forward pass, as contrastive losses do."""

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        strategy.mbatch[0] = torch.cat([strategy.mbatch[0]] * 2)

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        half = len(strategy.mb_y)
        strategy.mbatch[0], strategy.mb_output = (
            strategy.mbatch[0][:half],
            strategy.mb_output[:half],
        )


def test_another_plugin_may_double_the_batch(benchmark: Any) -> None:
    plugin = PrototypePlugin()
    strategy = build_strategy("naive", [plugin, TwoViews()])
    train_on(strategy, benchmark.train_stream)
    assert plugin.memory is not None
    assert plugin.memory.total == sum(len(e.dataset) for e in benchmark.train_stream)


def test_features_that_do_not_match_the_labels_are_an_error(benchmark: Any) -> None:
    strategy = build_strategy("naive", [PrototypePlugin(collect="training"), TwoViews()])
    with pytest.raises(RuntimeError, match=r"36 features but 18 labels.*extra_pass"):
        train_on(strategy, benchmark.train_stream)


# -- law 7: sums and counts, not averages ----------------------------------------------------


@pytest.mark.parametrize("collect", COLLECT)
@pytest.mark.parametrize("size", [7, 64])
def test_means_are_exact_whatever_the_batches_and_experiences(
    benchmark: Any, train_data: TensorData, collect: Any, size: int
) -> None:
    plugin = PrototypePlugin(collect=collect)
    strategy = frozen_naive(plugin, train_mb_size=size, eval_mb_size=size)
    train_on(strategy, benchmark.train_stream)
    expected = means_of(strategy.model, train_data)
    assert plugin.memory is not None
    assert torch.equal(plugin.memory.counts, expected.counts)
    torch.testing.assert_close(plugin.memory.means, expected.means, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("collect", COLLECT)
def test_a_class_that_returns_is_merged(
    benchmark: Any, train_data: TensorData, collect: Any
) -> None:
    plugin = PrototypePlugin(collect=collect)
    strategy = frozen_naive(plugin)
    halves = split_online_stream(benchmark.train_stream[:1], experience_size=41, shuffle=False)
    train_on(strategy, [next(iter(halves)), benchmark.train_stream[1], *list(halves)[1:]])
    assert plugin.memory is not None
    counts = dict(zip(plugin.memory.classes.tolist(), plugin.memory.counts.tolist(), strict=True))
    expected = torch.bincount(train_data.y)
    assert counts == {
        c: int(expected[c])
        for e in benchmark.train_stream[:2]
        for c in e.classes_in_this_experience
    }


def test_the_state_loads_into_a_fresh_plugin_and_without_pickled_code(
    benchmark: Any, tmp_path: Any
) -> None:
    plugin = PrototypePlugin(LinearDiscriminant())
    strategy = build_strategy("naive", [plugin])
    train_on(strategy, benchmark.train_stream)
    torch.save({"prototypes": plugin.state_dict()}, tmp_path / "state.pt")
    fresh = PrototypePlugin(LinearDiscriminant())
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True)["prototypes"])
    features = torch.rand(5, 16)
    assert torch.equal(fresh.logits(features), plugin.logits(features))


def test_the_memory_may_live_in_the_users_model(benchmark: Any) -> None:
    plugin = PrototypePlugin()
    strategy = build_strategy("naive", [plugin])
    train_on(strategy, benchmark.train_stream)
    strategy.model.prototypes = plugin.memory
    twin = build_net(seed=5)
    twin.prototypes = NearestMean().new_memory(16)
    twin.load_state_dict(strategy.model.state_dict())
    assert plugin.memory is not None
    assert torch.equal(twin.prototypes.means, plugin.memory.means)


# -- law 8: online streams -------------------------------------------------------------------


@pytest.mark.parametrize("collect", COLLECT)
@pytest.mark.parametrize("boundaries", [True, False])
def test_online_streams_give_the_same_statistics(
    benchmark: Any, train_data: TensorData, collect: Any, boundaries: bool
) -> None:
    plugin = PrototypePlugin(collect=collect)
    strategy = frozen_naive(plugin, InMemory(), train_epochs=1)
    stream = split_online_stream(
        benchmark.train_stream, experience_size=10, access_task_boundaries=boundaries
    )
    train_on(strategy, stream)
    expected = means_of(strategy.model, train_data)
    assert plugin.memory is not None
    assert torch.equal(plugin.memory.counts, expected.counts)
    torch.testing.assert_close(plugin.memory.means, expected.means, rtol=1e-5, atol=1e-6)


# -- law 9: mask by the task's classes -------------------------------------------------------


@pytest.mark.parametrize("collect", COLLECT)
def test_with_task_labels_only_classes_of_the_task_can_win(
    task_benchmark: Any, collect: Any
) -> None:
    strategy = build_strategy(
        "naive",
        [PrototypePlugin(collect=collect)],
        MTSimpleMLP(input_size=64, hidden_size=16),
    )
    train_on(strategy, task_benchmark.train_stream)
    for experience in task_benchmark.test_stream:
        classes = torch.tensor(sorted(experience.classes_in_this_experience))
        for logits in outputs_at_eval(strategy, experience):
            assert torch.isin(logits.argmax(1), classes).all()
            assert (logits > float("-inf")).sum(1).eq(len(classes)).all()


def test_masking_can_be_left_out(task_benchmark: Any) -> None:
    strategy = build_strategy("naive", [PrototypePlugin(mask_tasks=False)])
    train_on(strategy, task_benchmark.train_stream)
    logits = outputs_at_eval(strategy, task_benchmark.test_stream[0])[0]
    assert logits.isfinite().all()


# -- law 10: see test_feature_hook.py (names of layers) ---------------------------------------


def test_a_copy_and_a_pickle_of_the_strategy_go_on_alike(benchmark: Any) -> None:
    plugin = PrototypePlugin(collect="training")
    strategy = build_strategy("naive", [plugin, InMemory()])
    train_on(strategy, benchmark.train_stream[:1])
    strategy.eval(benchmark.test_stream)
    twins = [copy.deepcopy(strategy), pickle.loads(pickle.dumps(strategy.plugins[0]))]
    assert torch.equal(twins[0].plugins[0].memory.means, plugin.memory.means)
    assert torch.equal(twins[1].memory.means, plugin.memory.means)
    torch.manual_seed(3)
    train_on(strategy, benchmark.train_stream[1:])
    torch.manual_seed(3)
    train_on(twins[0], benchmark.train_stream[1:])
    assert torch.equal(twins[0].plugins[0].memory.means, plugin.memory.means)
