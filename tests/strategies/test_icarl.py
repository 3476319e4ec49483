"""iCaRL: herding against its definition, the loss, the budget, and what it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.training.losses import ICaRLLossPlugin
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protocl import PrototypeMemory
from protocl.strategies.exemplars.exemplar_sets import ExemplarSets
from protocl.strategies.exemplars.herding import herd
from protocl.strategies.icarl import ICaRLPlugin, distilled_binary_loss
from tests.strategies.small import (
    assert_continues_bit_for_bit,
    build_net,
    build_strategy,
    outputs_at_eval,
    train_on,
)


def herd_by_definition(x: np.ndarray, count: int) -> list[int]:
    chosen: list[int] = []
    for j in range(1, min(count, len(x)) + 1):
        rest = [i for i in range(len(x)) if i not in chosen]
        gaps = [np.linalg.norm(x.mean(0) - (x[i] + x[chosen].sum(0)) / j) for i in rest]
        chosen.append(rest[int(np.argmin(gaps))])
    return chosen


@given(st.integers(3, 15), st.integers(0, 20), st.integers(0, 2**31))
def test_herding_is_that_of_the_paper(samples: int, count: int, seed: int) -> None:
    x = np.random.RandomState(seed).randn(samples, 4)
    assert herd(torch.from_numpy(x), count).tolist() == herd_by_definition(x, count)


def test_herded_means_are_nearer_than_random_ones() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 8)
    gaps = [
        float((x[rows].mean(0) - x.mean(0)).norm())
        for rows in (herd(x, 10), torch.randperm(200)[:10])
    ]
    assert gaps[0] < 0.3 * gaps[1]


def test_the_loss_is_avalanches_where_that_is_defined() -> None:
    torch.manual_seed(0)
    logits, old = torch.randn(7, 5), torch.randn(7, 5)
    labels = torch.tensor([3, 4, 3, 0, 1, 4, 4])
    peer = ICaRLLossPlugin()
    torch.testing.assert_close(
        distilled_binary_loss(logits, labels, None, torch.zeros(0, dtype=torch.int64)),
        peer(logits, labels),
    )
    peer.old_logits, peer.old_classes = old, [0, 1, 2]
    torch.testing.assert_close(
        distilled_binary_loss(logits, labels, old, torch.tensor([0, 1, 2])), peer(logits, labels)
    )


def test_the_loss_has_the_gradient_of_its_formula() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    old, labels = torch.randn(3, 4, dtype=torch.float64), torch.tensor([2, 3, 0])
    assert torch.autograd.gradcheck(
        lambda z: distilled_binary_loss(z, labels, old, torch.tensor([0, 1])), (logits,)
    )


def features_of_sets(plugin: ICaRLPlugin, strategy: Any) -> tuple[Tensor, Tensor]:
    samples = [sample for part in plugin.exemplars.sets.values() for sample in part]
    with torch.no_grad():
        features = strategy.model.eval().features(torch.stack([sample[0] for sample in samples]))
    return features, torch.tensor([int(sample[1]) for sample in samples])


def test_prototypes_are_means_of_the_exemplars_under_the_present_model(benchmark: Any) -> None:
    plugin = ICaRLPlugin(mem_size=30)
    strategy = build_strategy("naive", [plugin])
    for seen, experience in zip((2, 4, 6), benchmark.train_stream, strict=True):
        train_on(strategy, [experience])
        assert len(plugin.exemplars) == 30 // seen * seen
        features, labels = features_of_sets(plugin, strategy)
        expected = PrototypeMemory(16).update(
            torch.nn.functional.normalize(features, dim=1), labels
        )
        assert plugin.memory.classes.tolist() == expected.classes.tolist()
        torch.testing.assert_close(plugin.memory.means, expected.means, rtol=1e-5, atol=1e-6)


def test_it_keeps_more_of_old_classes_than_gradient_descent(benchmark: Any) -> None:
    correct = {}
    for name, plugins in (("naive", []), ("icarl", [ICaRLPlugin(mem_size=60)])):
        model = build_net(features=32)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        strategy = build_strategy("naive", plugins, model, optimizer=optimizer, train_epochs=8)
        train_on(strategy, benchmark.train_stream)
        winners = torch.cat(outputs_at_eval(strategy, benchmark.test_stream[:2])).argmax(1)
        labels = torch.tensor([y for e in benchmark.test_stream[:2] for y in e.dataset.targets])
        correct[name] = float((winners == labels).float().mean())
    assert correct["icarl"] > correct["naive"] + 0.3


def test_a_class_that_comes_back_is_chosen_anew_among_old_and_new(train_data: Any) -> None:
    stream = nc_benchmark(train_data, train_data, 3, task_labels=False, seed=0).train_stream
    plugin = ICaRLPlugin(mem_size=24)
    strategy = build_strategy("naive", [plugin])
    train_on(strategy, [stream[0], stream[1], stream[0]])
    assert sorted(plugin.exemplars.sets) == sorted(
        stream[0].classes_in_this_experience + stream[1].classes_in_this_experience
    )
    assert all(len(part) == 6 for part in plugin.exemplars.sets.values())


def test_a_checkpoint_continues_bit_for_bit(benchmark: Any, tmp_path: Any) -> None:
    strategy = build_strategy("naive", [ICaRLPlugin(mem_size=30)])
    assert_continues_bit_for_bit(strategy, benchmark, tmp_path)


def test_a_budget_smaller_than_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="mem_size=1: less than one sample for each of 2 classes"):
        ExemplarSets(1).put({0: [], 1: []})
    with pytest.raises(ValueError, match="mem_size=0: expected a number of samples, at least 1"):
        ExemplarSets(0)
