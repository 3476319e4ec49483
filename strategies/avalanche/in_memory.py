"""Serve mini-batches from tensors instead of through Avalanche's per-sample data layer.

``Naive(..., plugins=[InMemory()])`` trains to bit-identical weights, several times as fast where
the model is small. Measured by ``protocl bench``; what each half of the plugin saves:

* *Data.* Avalanche reads a dataset sample by sample through four nested calls (13 us a sample).
  Here a mini-batch is one indexing operation, in the same order and with the same draws from
  torch's generator, for whatever loader the strategy uses: its own, Replay's, a task-balanced one.
* *Loop.* Avalanche offers each of 12 events an iteration to every plugin, and for each event
  copies the experience for the evaluator, listened to or not (see :mod:`.lean_loop`).

What stays is what somebody listens to: a metric or logger that acts on every iteration still
costs its copy of the experience.

Data that has transforms (which may be random), lies in files, or has a collate function of its own
keeps Avalanche's loader; ``InMemory.declined`` then says why. Images need no extra memory: they
are read from the dataset's own tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader, MultiDatasetSampler
from avalanche.core import SupervisedPlugin
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from protocl.memory.limits.capacity import available_bytes
from protocl.strategies.avalanche.lean_loop import (
    use_lean_evaluation,
    use_lean_training,
    use_own_loop,
)
from protocl.strategies.avalanche.tensor_rows import NotInMemory, TensorRows, tensor_rows


class InMemory(SupervisedPlugin[Any]):
    """Serve training and evaluation batches from tensors, with identical results.

    Args:
        device: keep the data on this device, such as ``"cuda"``; ``"model"`` for the one that the
            strategy computes on, unless the data would take more than half of what is free there;
            by default it stays where the dataset has it.
        lean_loop: also skip the callbacks that no plugin, metric or logger implements.

    Attributes:
        declined: why the last loader was left alone, or None.

    Example:
        >>> from avalanche.training import Naive
        >>> from protocl.checks import toy
        >>> def weight(*plugins):
        ...     model = toy.model()
        ...     sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     _ = toy.learn(Naive(model=model, optimizer=sgd, plugins=list(plugins)))
        ...     return model.classifier.weight
        >>> torch.equal(weight(), weight(InMemory()))
        True
    """

    def __init__(self, device: torch.device | str | None = None, lean_loop: bool = True) -> None:
        super().__init__()
        self.with_model = device == "model"
        placed = None if device is None or self.with_model else torch.device(device)
        self.device: torch.device | None = placed
        self.lean_loop = lean_loop
        self.declined: str | None = None

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        # Not before_training_exp: ReplayPlugin and its like put their own loader there, and the
        # strategy's own plugins come after the user's.
        self._serve(strategy)
        if self.lean_loop:
            use_lean_training(strategy)

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._serve(strategy)
        if self.lean_loop:
            use_lean_evaluation(strategy)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        use_own_loop(strategy)

    def after_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        use_own_loop(strategy)

    def _serve(self, strategy: Any) -> None:
        if isinstance(strategy.dataloader, InMemoryLoader):
            return
        self.declined = None
        try:
            device = _home(strategy) if self.with_model else self.device
            strategy.dataloader = in_memory_loader(strategy.dataloader, device)
        except NotInMemory as reason:
            self.declined = str(reason)


def _home(strategy: Any) -> torch.device | None:
    """The device of the model, where that is none of the host's and the data leave half of it."""
    device: torch.device = strategy.device
    if device.type == "cpu":
        return None
    needed = in_memory_loader(strategy.dataloader).rows.nbytes
    return device if 2 * needed <= available_bytes(device) else None


def in_memory_loader(loader: Any, device: torch.device | None = None) -> InMemoryLoader:
    """The loader that yields the batches of ``loader`` out of tensors.

    Args:
        loader: a torch ``DataLoader`` or one of Avalanche's, over Avalanche datasets.
        device: where the tensors are kept; where they are by default.

    Raises:
        NotInMemory: the loader or its data is of a kind that cannot be reproduced exactly.
    """
    if isinstance(loader, MultiDatasetDataLoader):
        if loader.distributed_sampling:
            raise NotInMemory("training is distributed")
        if loader.never_ending:
            raise NotInMemory("its loader never ends")
        datasets, settings = loader.datasets, loader.loader_kwargs
    elif type(loader) is DataLoader:
        datasets, settings = [loader.dataset], vars(loader)
    else:
        raise NotInMemory(f"its loader is a {type(loader).__name__}")
    if settings.get("persistent_workers"):
        raise NotInMemory("its loader keeps worker processes alive between epochs")
    if settings["collate_fn"] is not default_collate:
        raise NotInMemory(f"its collate function is {settings['collate_fn']}")
    rows = tensor_rows(*datasets)
    return InMemoryLoader(loader, rows if device is None else rows.to(device))


class InMemoryLoader:
    """Yields the batches of another loader, in its order, out of tensors.

    Args:
        loader: the loader that decides the order.
        rows: its samples.
    """

    def __init__(self, loader: DataLoader[Any] | MultiDatasetDataLoader, rows: TensorRows) -> None:
        self.loader = loader
        self.rows = rows

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Tensor]]:
        batch_sampler = _batch_sampler(self.loader)
        # torch's iterator draws a seed for worker processes before the sampler draws the order.
        torch.empty((), dtype=torch.int64).random_(generator=_generator(self.loader))
        sampler = _only_sampler(batch_sampler)
        order = _order(sampler.sampler) if sampler is not None and len(sampler) else None
        if sampler is None or order is None:
            home = self.rows.rows.device
            for index in batch_sampler:
                # An index that lies on the host would have the host wait for the device.
                yield self.rows.take(torch.tensor(index).to(home, non_blocking=True)).batch()
            return
        if sampler.drop_last:
            order = order[: len(sampler) * sampler.batch_size]
        yield from self.rows.take(order).split(sampler.batch_size)


def _batch_sampler(loader: DataLoader[Any] | MultiDatasetDataLoader) -> Any:
    """The sampler that ``loader`` would iterate, new as for each epoch.

    Not ``loader._get_loader()``, which visits every sample to ask whether it comes from FFCV.
    """
    if isinstance(loader, DataLoader):
        return loader.batch_sampler
    samplers = loader._create_samplers(
        loader.datasets, loader.batch_sizes, loader.distributed_sampling, loader.loader_kwargs
    )
    return MultiDatasetSampler(
        loader.datasets,
        samplers,
        termination_dataset_idx=loader.termination_dataset,
        oversample_small_datasets=loader.oversample_small_datasets,
    )


def _generator(loader: DataLoader[Any] | MultiDatasetDataLoader) -> torch.Generator | None:
    if isinstance(loader, DataLoader):
        return loader.generator
    return loader.loader_kwargs.get("generator")


def _only_sampler(batch_sampler: Any) -> BatchSampler | None:
    """The sampler that alone decides the batches, if there is one of torch's own kind."""
    if isinstance(batch_sampler, MultiDatasetSampler):
        if len(batch_sampler.samplers) != 1:
            return None
        batch_sampler = batch_sampler.samplers[0]
    return batch_sampler if type(batch_sampler) is BatchSampler else None


def _order(sampler: Any) -> Tensor | None:
    """The whole order ``(N,)`` at once, with the draws of ``sampler``; None if it is unknown."""
    if type(sampler) is SequentialSampler:
        return torch.arange(len(sampler.data_source))
    if type(sampler) is not RandomSampler or sampler.replacement or sampler.generator is not None:
        return None
    if sampler.num_samples != len(sampler.data_source):
        return None
    generator = torch.Generator()
    generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
    return torch.randperm(len(sampler.data_source), generator=generator)
