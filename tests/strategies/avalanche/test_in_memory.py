from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.utils import (
    _make_taskaware_tensor_classification_dataset as tensor_dataset,
)
from avalanche.benchmarks.utils import (
    as_classification_dataset,
)
from avalanche.benchmarks.utils.data_loader import (
    GroupBalancedInfiniteDataLoader,
    ReplayDataLoader,
    SingleDatasetDataLoader,
    TaskBalancedDataLoader,
)
from torch.utils.data import DataLoader, TensorDataset

from protocl.data import TensorData
from protocl.strategies import InMemory
from protocl.strategies.avalanche.in_memory import InMemoryLoader, in_memory_loader
from protocl.strategies.avalanche.tensor_rows import NotInMemory, tensor_rows
from tests.strategies.small import (
    assert_equal_weights,
    build_net,
    build_strategy,
    train_on,
    weights_of,
)


def batches(loader: Any, epochs: int = 2) -> tuple[list[list[torch.Tensor]], torch.Tensor]:
    """All batches of some epochs from a fixed random state, and the state after them."""
    torch.manual_seed(7)
    found = [list(batch) for _ in range(epochs) for batch in loader]
    return found, torch.get_rng_state()


def assert_same_batches(loader: Any) -> None:
    """Our loader yields what ``loader`` yields and leaves the random state as it leaves it."""
    theirs, their_state = batches(loader)
    ours, our_state = batches(in_memory_loader(loader))
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
    assert torch.equal(our_state, their_state)
    assert len(in_memory_loader(loader)) == len(loader)


class TestSameBatches:
    @pytest.mark.parametrize("shuffle", [True, False])
    @pytest.mark.parametrize("drop_last", [True, False])
    @pytest.mark.parametrize("size", [1, 7, 500])
    def test_one_dataset(self, benchmark: Any, size: int, shuffle: bool, drop_last: bool) -> None:
        dataset = benchmark.train_stream[0].dataset
        settings: dict[str, Any] = {"batch_size": size, "shuffle": shuffle, "drop_last": drop_last}
        assert_same_batches(
            TaskBalancedDataLoader(dataset, oversample_small_groups=True, **settings)
        )
        assert_same_batches(SingleDatasetDataLoader(dataset, **settings))

    def test_new_api(self, new_benchmark: Any) -> None:
        dataset = new_benchmark.train_stream[0].dataset
        assert_same_batches(DataLoader(dataset, batch_size=9, shuffle=True))

    def test_a_generator_of_the_users(self, new_benchmark: Any) -> None:
        dataset, found = new_benchmark.train_stream[0].dataset, []
        for make in (lambda loader: loader, in_memory_loader):
            generator = torch.Generator().manual_seed(3)
            loader = DataLoader(dataset, batch_size=9, shuffle=True, generator=generator)
            drawn, _ = batches(make(loader))
            found.append((torch.cat([batch[0] for batch in drawn]), generator.get_state()))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])

    def test_several_tasks(self, task_benchmark: Any) -> None:
        first, second, _ = (e.dataset for e in task_benchmark.train_stream)
        both = first.concat(second.subset(range(20)))
        assert_same_batches(
            TaskBalancedDataLoader(both, batch_size=10, oversample_small_groups=True, shuffle=True)
        )

    @pytest.mark.parametrize("oversample", [True, False])
    @pytest.mark.parametrize("balanced", [True, False])
    def test_replay(self, task_benchmark: Any, oversample: bool, balanced: bool) -> None:
        first, second, third = (e.dataset for e in task_benchmark.train_stream)
        buffer = first.subset([3, 1, 30]).concat(second.subset([0, 8, 9, 11]))
        loader = ReplayDataLoader(
            third, buffer, batch_size=8, batch_size_mem=5, shuffle=True,
            oversample_small_tasks=oversample, task_balanced_dataloader=balanced,
        )  # fmt: skip
        assert_same_batches(loader)

    def test_data_from_several_tensors_is_joined(self, benchmark: Any) -> None:
        mine = benchmark.train_stream[0].dataset
        other = tensor_dataset(torch.rand(9, 1, 8, 8), torch.arange(9), task_labels=[3] * 9)
        both = mine.concat(other).subset(np.random.RandomState(0).permutation(len(mine) + 9))
        assert_same_batches(SingleDatasetDataLoader(both, batch_size=8))

    def test_images_in_bytes_are_scaled_like_the_datasets_own(self) -> None:
        x = torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8)
        data = TensorData(x, torch.arange(40) % 4)
        stream = nc_benchmark(data, data, n_experiences=2, task_labels=False).train_stream
        assert_same_batches(TaskBalancedDataLoader(stream[1].dataset, batch_size=6, shuffle=True))

    def test_bytes_of_a_tensor_dataset_stay_bytes(self) -> None:
        x = torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8)
        data = tensor_dataset(x, torch.arange(40) % 4)
        assert_same_batches(SingleDatasetDataLoader(data, batch_size=6, shuffle=True))

    def test_class_ids_that_start_at_zero_in_each_task(self, train_data: TensorData) -> None:
        stream = nc_benchmark(
            train_data, train_data, n_experiences=3, task_labels=True, seed=0,
            class_ids_from_zero_in_each_exp=True,
        ).train_stream  # fmt: skip
        assert tensor_rows(stream[2].dataset).columns[0].unique().tolist() == [0, 1]
        assert_same_batches(TaskBalancedDataLoader(stream[2].dataset, batch_size=6, shuffle=True))


class TestLeftAlone:
    """What cannot be reproduced exactly keeps Avalanche's loader, and the reason is given."""

    @pytest.mark.parametrize("group", ["train", "eval"])
    def test_data_with_a_transform(self, train_data: TensorData, group: str) -> None:
        benchmark = nc_benchmark(
            train_data, train_data, n_experiences=2, task_labels=False, train_transform=torch.flip,
        )  # fmt: skip
        dataset = benchmark.train_stream[0].dataset.with_transforms(group)
        if group == "eval":
            assert len(tensor_rows(dataset)) == len(dataset)
        else:
            with pytest.raises(NotInMemory, match="transform"):
                tensor_rows(dataset)

    def test_a_target_transform(self, train_data: TensorData) -> None:
        dataset = as_classification_dataset(
            train_data, transform_groups={"train": (None, abs), "eval": (None, abs)}
        )
        with pytest.raises(NotInMemory, match="target transform"):
            tensor_rows(dataset)

    def test_a_dataset_that_is_not_tensors(self, train_data: TensorData) -> None:
        class Other(TensorDataset):
            """A subclass may do anything in ``__getitem__``."""

        other = Other(train_data.x, train_data.y)
        other.targets = train_data.targets  # type: ignore[attr-defined]
        dataset = as_classification_dataset(other)
        with pytest.raises(NotInMemory, match="ends in a Other"):
            tensor_rows(dataset)

    def test_a_collate_function(self, new_benchmark: Any) -> None:
        dataset = new_benchmark.train_stream[0].dataset
        with pytest.raises(NotInMemory, match="collate function"):
            in_memory_loader(DataLoader(dataset, collate_fn=list))
        dataset.collate_fn = list
        with pytest.raises(NotInMemory, match="collate function"):
            in_memory_loader(SingleDatasetDataLoader(dataset))

    def test_a_loader_without_end_or_of_unknown_kind(self, new_benchmark: Any) -> None:
        dataset = new_benchmark.train_stream[0].dataset
        with pytest.raises(NotInMemory, match="never ends"):
            in_memory_loader(GroupBalancedInfiniteDataLoader([dataset]))
        with pytest.raises(NotInMemory, match="is a list"):
            in_memory_loader([])

    def test_workers_that_stay_alive(self, new_benchmark: Any) -> None:
        loader = DataLoader(
            new_benchmark.train_stream[0].dataset, num_workers=1, persistent_workers=True
        )
        with pytest.raises(NotInMemory, match="worker processes"):
            in_memory_loader(loader)

    def test_the_strategy_trains_all_the_same(self, train_data: TensorData) -> None:
        def flip(x: torch.Tensor) -> torch.Tensor:
            return x.flip(-1) if torch.rand(()) < 0.5 else x

        benchmark = nc_benchmark(
            train_data, train_data, n_experiences=2, task_labels=False, seed=0,
            train_transform=flip, eval_transform=flip,
        )  # fmt: skip
        weights = []
        for plugins in ([], [InMemory()]):
            strategy = build_strategy("naive", plugins)
            train_on(strategy, benchmark.train_stream)
            weights.append(weights_of(strategy.model))
        assert_equal_weights(*weights)
        assert "flip" in str(plugins[0].declined)


class TestPlugin:
    def test_it_serves_training_and_evaluation(self, benchmark: Any) -> None:
        loaders = []

        class Watch:
            def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
                loaders.append(strategy.dataloader)

            before_eval_iteration = before_training_iteration

        plugin = InMemory()
        strategy = build_strategy("replay", [plugin, Watch()])
        train_on(strategy, benchmark.train_stream)
        strategy.eval(benchmark.test_stream)
        assert loaders
        assert all(isinstance(loader, InMemoryLoader) for loader in loaders)
        assert plugin.declined is None

    def test_the_data_may_live_on_another_device(self, benchmark: Any) -> None:
        loader = TaskBalancedDataLoader(benchmark.train_stream[0].dataset, batch_size=8)
        moved = in_memory_loader(loader, torch.device("meta"))
        assert moved.rows.leaf.x.device.type == "meta"
        assert moved.rows.rows.device.type == "meta"
        assert moved.rows.columns[0].device.type == "meta"

    def test_workers_are_not_started(self, benchmark: Any) -> None:
        weights = []
        for plugins in ([], [InMemory()]):
            strategy = build_strategy("naive", plugins, build_net(), train_epochs=1)
            train_on(strategy, benchmark.train_stream[:1], num_workers=1)
            weights.append(weights_of(strategy.model))
        assert_equal_weights(*weights)
