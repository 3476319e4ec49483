"""Our plugins change nothing: weights and random state are bit-identical with and without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from avalanche.training.plugins import LwFPlugin

from protocl.strategies import InMemory, PrototypePlugin
from tests.strategies.small import (
    STRATEGIES,
    assert_equal_weights,
    build_strategy,
    train_on,
    weights_of,
)

PLUGINS: dict[str, Callable[[], list[Any]]] = {
    "extra_pass": lambda: [PrototypePlugin()],
    "training": lambda: [PrototypePlugin(collect="training")],
    "in_memory": lambda: [InMemory()],
    "in_memory_only": lambda: [InMemory(lean_loop=False)],
    "together": lambda: [PrototypePlugin(), InMemory()],
}

# What fails without our plugins, and with them all the same: Avalanche 0.6.0 on its new API.
BROKEN = {"lwf": (AttributeError, "targets_task_labels"), "der": (ValueError, "expected 3, got 2")}


def run(name: str, plugins: list[Any], stream: Any, test_stream: Any) -> tuple[Any, torch.Tensor]:
    """Weights, and the random state after training and evaluating twice over."""
    strategy = build_strategy(name, plugins)
    for experience in stream:
        train_on(strategy, [experience])
        strategy.eval(test_stream)
    return weights_of(strategy.model), torch.get_rng_state()


@pytest.mark.parametrize("plugins", PLUGINS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_weights_on_the_old_api(name: str, plugins: str, benchmark: Any) -> None:
    streams = benchmark.train_stream, benchmark.test_stream
    without, state_without = run(name, [], *streams)
    with_ours, state_with = run(name, PLUGINS[plugins](), *streams)
    assert_equal_weights(with_ours, without)
    assert torch.equal(state_with, state_without)


@pytest.mark.parametrize("plugins", PLUGINS)
@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - set(BROKEN)))
def test_weights_on_the_new_api(name: str, plugins: str, new_benchmark: Any) -> None:
    streams = new_benchmark.train_stream, new_benchmark.test_stream
    without, state_without = run(name, [], *streams)
    with_ours, state_with = run(name, PLUGINS[plugins](), *streams)
    assert_equal_weights(with_ours, without)
    assert torch.equal(state_with, state_without)


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize(
    "plugins", [[], [PrototypePlugin()], [InMemory()]], ids=["none", "prototypes", "in_memory"]
)
def test_where_avalanche_fails_on_its_new_api_we_are_not_the_cause(
    name: str, plugins: list[Any], new_benchmark: Any
) -> None:
    kind, message = BROKEN[name]
    with pytest.raises(kind, match=message):
        run(name, plugins, new_benchmark.train_stream, new_benchmark.test_stream)


def test_the_teacher_that_lwf_distils_from_is_the_same(benchmark: Any) -> None:
    teachers = []
    for plugins in ([], [PrototypePlugin(collect="training"), InMemory()]):
        strategy = build_strategy("lwf", plugins)
        train_on(strategy, benchmark.train_stream[:2])
        (lwf,) = (plugin for plugin in strategy.plugins if isinstance(plugin, LwFPlugin))
        teachers.append(lwf.lwf.prev_model)
    assert_equal_weights(*teachers)
    assert all(not module._forward_pre_hooks for module in teachers[1].modules())
