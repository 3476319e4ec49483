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
    FeaturePoint,
    joined,
    undisturbed,
)
from protocl.strategies.plugin.model_output import tensors_in, width_of
from protocl.strategies.plugin.task_classes import has_task_labels, tasks_of


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
    if _only_host_reads(strategy, batch):
        return _by_host(strategy, batch, tasked, view)
    x, y, *rest = (part.to(strategy.device, non_blocking=True) for part in batch)
    x, tasks, model = x if view is None else view(x), rest[-1] if tasked else None, strategy.model
    forward = partial(avalanche_forward, model, x, tasks)
    return _Batch(x, y, tasks, forward, one_sample(model, x, tasks))


def _only_host_reads(strategy: Any, batch: Any) -> bool:
    """Whether a strategy of its own decides which parts of a mini-batch are what."""
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


def sample_of(strategy: Any) -> Forward:
    """Runs the strategy's model on one sample of its present mini-batch, if it is a plain one."""
    if _only_host_reads(strategy, strategy.mbatch):
        forward: Forward = strategy.forward
        return forward
    return one_sample(strategy.model, strategy.mbatch[0], tasks_of(strategy))


def least_width(strategy: Any, point: FeaturePoint | None) -> int:
    """Columns that an answer to the present mini-batch needs: the model's own and one a label.

    Args:
        strategy: whose model has just been run.
        point: where its features are; what a model returns is no scores where these are features.
    """
    labels = int(strategy.mb_y.max()) + 1
    if point is not None and point.after:
        return labels
    place = None if point is None else point.scores
    return max(width_of(strategy.mb_output, len(strategy.mb_y), place), labels)


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


def _flat(x: Any, labels: Tensor) -> Tensor:
    """All numbers ``(B, K)`` of the inputs; NaN, which equals nothing, where there are none."""
    found = [part.reshape(len(labels), -1).float() for part in tensors_in(x)]
    if not found:
        return torch.full((len(labels), 1), torch.nan, device=labels.device)
    return found[0] if len(found) == 1 else torch.cat(found, 1)


class Signature:
    """What tells samples from other samples: label and one projection of each input.

    Args:
        samples: number of them.
    """

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._seen = 0
        self._direction: Tensor | None = None
        self._values: Tensor | None = None

    def add(self, x: Any, labels: Tensor) -> None:
        """Take in inputs ``(B, ...)``, or what holds several such, and labels ``(B,)``."""
        flat = _flat(x, labels)
        if self._direction is None or len(self._direction) != flat.shape[1]:
            places = torch.arange(flat.shape[1], dtype=flat.dtype, device=flat.device)
            self._direction = torch.sin(places)
        if self._values is None:
            self._values = flat.new_zeros((2, self._samples))
        end = self._seen + len(labels)
        self._values[0, self._seen : end] = labels
        self._values[1, self._seen : end] = flat @ self._direction
        self._seen = end

    def value(self) -> Tensor:
        """``(2, N)`` of all samples, on the CPU."""
        return torch.zeros(2, 0) if self._values is None else self._values.cpu()
