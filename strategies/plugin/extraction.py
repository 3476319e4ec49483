"""One pass over a dataset through a strategy's model, of which the strategy notices nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from avalanche.models import avalanche_forward
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor
from torch.utils.data import DataLoader

from protocl.strategies.avalanche.tensor_rows import NotInMemory, integers, tensor_rows
from protocl.strategies.plugin.classifier_layer import FeatureFinder, Forward, one_sample
from protocl.strategies.plugin.feature_hook import (
    Enough,
    FeatureHook,
    joined,
    undisturbed,
)
from protocl.strategies.plugin.task_classes import has_task_labels


def features_of(
    strategy: Any,
    dataset: Any,
    layer: str | None = None,
    num_workers: int = 0,
    view: Callable[[Tensor], Tensor] | None = None,
    held: bool = False,
) -> Iterator[tuple[Any, Tensor, Tensor, Tensor | None]]:
    """Features of ``dataset`` under its evaluation transforms, batch by batch.

    Runs on the strategy's device in batches of its ``eval_mb_size``, in evaluation mode. Draws
    nothing from the caller's random state; the model's modes and BatchNorm statistics stay.

    Args:
        strategy: an Avalanche strategy.
        dataset: an ``AvalancheDataset``.
        layer: name of the classification layer, found by itself if None.
        num_workers: processes that load data which is not in memory.
        view: what to do with the inputs of a batch first, such as a rotation.
        held: the caller keeps the model :func:`undisturbed` through the whole pass, which saves
            doing it for each batch.

    Yields:
        Inputs ``(B, ...)``, or what holds several such, features ``(B, D)``, labels ``(B,)`` and
        task labels ``(B,)`` or None.
    """
    model, tasked = strategy.model, has_task_labels(dataset)
    find, hook = FeatureFinder(layer), FeatureHook(features_only=True)
    for batch in batches_of(dataset, strategy.eval_mb_size, num_workers):
        given = _on_device(strategy, batch, tasked, view)
        with nullcontext() if held else undisturbed(model):
            hook.open_at(model, find(model, given.one_sample))
            try:
                with suppress(Enough):
                    given.forward()
            finally:
                seen = hook.close()
        yield given.x, joined(seen, given.tasks), given.labels, given.tasks


class _Batch(NamedTuple):
    """A mini-batch on the strategy's device, and how it, or one sample of it, goes forward."""

    x: Any
    labels: Tensor
    tasks: Tensor | None
    forward: Forward
    one_sample: Forward


def _on_device(
    strategy: Any, batch: Any, tasked: bool, view: Callable[[Tensor], Tensor] | None
) -> _Batch:
    if only_host_reads(strategy, batch):
        return _by_host(strategy, batch, tasked, view)
    x, y, *rest = (part.to(strategy.device, non_blocking=True) for part in batch)
    x, tasks, model = x if view is None else view(x), rest[-1] if tasked else None, strategy.model
    forward = partial(avalanche_forward, model, x, tasks)
    return _Batch(x, y, tasks, forward, one_sample(model, x, tasks))


def only_host_reads(strategy: Any, batch: Any) -> bool:
    """Whether the strategy alone can tell inputs from labels in a mini-batch."""
    readers = ("_unpack_minibatch", "mb_x", "mb_y")
    kind = type(strategy)
    own = any(getattr(kind, name) is not getattr(SupervisedTemplate, name) for name in readers)
    return own or isinstance(batch, Mapping)


def _by_host(
    strategy: Any, batch: Any, tasked: bool, view: Callable[[Tensor], Tensor] | None
) -> _Batch:
    """A mini-batch that only a strategy of its own can read and give to the model."""
    with _as_minibatch(strategy, batch):
        strategy._unpack_minibatch()
        if view is not None:
            _put_view(strategy, view)
        batch, x, labels = strategy.mbatch, strategy.mb_x, strategy.mb_y
        tasks = strategy.mb_task_id if tasked and not isinstance(batch, Mapping) else None

    def forward() -> Any:
        with _as_minibatch(strategy, batch):
            return strategy.forward()

    return _Batch(x, labels, tasks, forward, forward)


def _put_view(strategy: Any, view: Callable[[Tensor], Tensor]) -> None:
    batch = strategy.mbatch
    if isinstance(batch, Mapping) or strategy.mb_x is not batch[0]:
        raise TypeError(
            f"{type(strategy).__name__} reads mini-batches of its own form, of whose inputs no "
            "views can be made: let the data set give (inputs, labels), or no views"
        )
    batch[0] = view(batch[0])


@contextmanager
def _as_minibatch(strategy: Any, batch: Any) -> Iterator[None]:
    before, strategy.mbatch = strategy.mbatch, batch
    try:
        yield
    finally:
        strategy.mbatch = before


def batches_of(dataset: Any, size: int, num_workers: int = 0) -> Iterator[Any]:
    """Mini-batches of ``dataset`` in order, under its evaluation transforms; nothing is drawn."""
    dataset = dataset.eval()
    try:
        yield from tensor_rows(dataset).split(size)
    except NotInMemory:
        # A DataLoader takes a seed from the global generator even when it does not shuffle.
        yield from DataLoader(
            dataset,
            size,
            num_workers=num_workers,
            collate_fn=dataset.collate_fn,
            generator=torch.Generator(),
        )


def labels_of(dataset: Any) -> Tensor:
    """Class ids ``(N,)`` int64 of an Avalanche dataset, of which no sample is read.

    Raises:
        TypeError: it does not tell them, or they are no integers.
    """
    if not hasattr(dataset, "targets"):
        raise TypeError(
            "the data set of the experience has no targets, so its classes are not known before "
            "all samples are read: make it by as_classification_dataset(data) of "
            "avalanche.benchmarks.utils, where data.targets lists the class id of each sample"
        )
    try:
        return torch.from_numpy(integers(dataset.targets))
    except NotInMemory as reason:
        raise TypeError(f"the targets of the experience's data set: {reason}") from reason


def classes_of(dataset: Any) -> Tensor:
    """Class ids ``(C,)`` in ``dataset``, ascending; as :func:`labels_of`.

    Not by ``dataset.targets.uniques``, for which Avalanche visits every sample.
    """
    return labels_of(dataset).unique()
