"""The memory of stored samples: shares, selection, and as the buffer of Avalanche's replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import ReplayPlugin

from protocl.data import TensorData
from protocl.strategies import SampleMemory
from protocl.strategies.exemplars.medoids import medoids
from tests.strategies.frozen.test_base import configured, setup_of
from tests.strategies.small import assert_continues_bit_for_bit, build_strategy, train_on


def test_shares_shrink_with_each_experience(benchmark: Any) -> None:
    memory, datasets = SampleMemory(10), [e.dataset for e in benchmark.train_stream]
    kept = []
    for dataset in datasets:
        memory.add(dataset)
        kept.append([[y for _, y, *_ in part] for part in memory.parts])
    assert [[len(part) for part in parts] for parts in kept] == [[10], [5, 5], [3, 3, 3]]
    assert kept[1][0] == kept[0][0][:5]
    assert kept[2][:2] == [part[:3] for part in kept[1]]


def test_stored_samples_are_repeated_to_balance_new_ones(benchmark: Any) -> None:
    memory = SampleMemory(30)
    memory.add(benchmark.train_stream[0].dataset)
    new = benchmark.train_stream[1].dataset
    both = memory.beside(new)
    assert len(both) == len(new) + len(new) // 30 * 30
    assert list(both.targets)[: len(new)] == list(new.targets)


def test_a_memory_larger_than_the_data_is_seen_once(benchmark: Any) -> None:
    memory = SampleMemory(1000)
    first, second = (e.dataset for e in benchmark.train_stream[:2])
    memory.add(first)
    assert len(memory) == len(first)
    assert len(memory.beside(second)) in (
        len(first) + len(second),
        2 * len(first) + len(second),
    )


def test_medoids_are_balanced_and_shrink_to_the_best_of_them(benchmark: Any) -> None:
    memory = SampleMemory(21, "medoids")
    for experience in benchmark.train_stream[:2]:
        memory.add(experience.dataset)
    for part, experience in zip(memory.parts, benchmark.train_stream, strict=False):
        labels = torch.tensor([y for _, y, *_ in part])
        classes, counts = labels.unique(return_counts=True)
        assert counts.tolist() == [5, 5]
        for class_id in classes:
            own = torch.stack([x for x, y, *_ in experience.dataset if y == class_id])
            kept = torch.stack([x for x, y, *_ in part if y == class_id])
            assert torch.equal(kept, own[medoids(own, 5)])


def test_a_class_of_few_samples_leaves_its_share_to_the_others(benchmark: Any) -> None:
    dataset = benchmark.train_stream[0].dataset
    few, many = (torch.nonzero(torch.tensor(list(dataset.targets)) == c).flatten().tolist()
                 for c in benchmark.train_stream[0].classes_in_this_experience)  # fmt: skip
    memory = SampleMemory(20, "medoids")
    memory.add(dataset.subset([*many, *few[:3]]))
    (part,) = memory.parts
    assert len(part) == 20
    assert list(part.targets).count(dataset.targets[few[0]]) == 3


def test_without_budget_nothing_is_stored(benchmark: Any) -> None:
    memory = SampleMemory(0)
    memory.add(benchmark.train_stream[0].dataset)
    assert len(memory) == 0
    assert memory.beside(benchmark.train_stream[1].dataset) is benchmark.train_stream[1].dataset


def test_resizing_keeps_the_first_of_each_part(benchmark: Any) -> None:
    memory = SampleMemory(20, "medoids")
    for experience in benchmark.train_stream[:2]:
        memory.add(experience.dataset)
    before = [[float(x.sum()) for x, *_ in part] for part in memory.parts]
    memory.resize(None, 8)
    assert memory.max_size == 8
    after = [[float(x.sum()) for x, *_ in part] for part in memory.parts]
    assert after == [part[:4] for part in before]
    assert [float(x.sum()) for x, *_ in memory.buffer] == after[0] + after[1]


@pytest.mark.parametrize("selection", ["random", "medoids"])
def test_avalanches_replay_plugin_replays_it(benchmark: Any, selection: Any) -> None:
    memory = SampleMemory(20, selection)
    replayed: list[set[int]] = []

    class Look:
        def before_forward(self, strategy: Any, **kwargs: Any) -> None:
            replayed[-1].update(strategy.mb_y.tolist())

        def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
            replayed.append(set())

    strategy = build_strategy("naive", [ReplayPlugin(20, storage_policy=memory), Look()])
    train_on(strategy, benchmark.train_stream)
    seen: set[int] = set()
    for labels, experience in zip(replayed, benchmark.train_stream, strict=True):
        seen |= set(experience.classes_in_this_experience)
        assert labels == seen
    assert [len(part) for part in memory.parts] == [6, 6, 6]


def test_replay_stores_medoids_on_request(train_data: TensorData, benchmark: Any) -> None:
    config = configured("replay", "strategy.selection=medoids", "strategy.mem_size=30")
    strategy = config.build(setup_of(train_data))
    assert type(strategy) is Naive
    train_on(strategy, benchmark.train_stream[:1])
    (replay,) = (plugin for plugin in strategy.plugins if isinstance(plugin, ReplayPlugin))
    dataset = benchmark.train_stream[0].dataset
    class_id = benchmark.train_stream[0].classes_in_this_experience[0]
    own = torch.stack([x for x, y, *_ in dataset if y == class_id])
    kept = torch.stack([x for x, y, *_ in replay.storage_policy.buffer if y == class_id])
    assert torch.equal(kept, own[medoids(own, 15)])


def test_replay_of_medoids_continues_bit_for_bit(benchmark: Any, tmp_path: Path) -> None:
    plugin = ReplayPlugin(20, storage_policy=SampleMemory(20, "medoids"))
    assert_continues_bit_for_bit(build_strategy("naive", [plugin]), benchmark, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1,), "mem_size=-1: expected a number of samples, at least 0"),
        ((10, "best"), "selection='best': expected 'random' or 'medoids'"),
    ],
)
def test_refusals(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SampleMemory(*arguments)
