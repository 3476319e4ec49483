"""One pass over a dataset through a strategy's model, of which the strategy notices nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from avalanche.models import avalanche_forward
from torch import Tensor
from torch.utils.data import DataLoader

from protocl.strategies.feature_tap import FeatureTap, find_classifier, joined, undisturbed
from protocl.strategies.tensor_rows import NotInMemory, integers, tensor_rows


def features_of(
    strategy: Any,
    dataset: Any,
    layer: str | None = None,
    num_workers: int = 0,
    view: Callable[[Tensor], Tensor] | None = None,
    held: bool = False,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
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
        Inputs ``(B, ...)``, features ``(B, D)``, labels ``(B,)`` and task labels ``(B,)`` or None.
    """
    model = strategy.model
    classifier, tap = find_classifier(model, layer), FeatureTap(features_only=True)
    for batch in _batches(dataset.eval(), strategy.eval_mb_size, num_workers):
        x, y, *rest = (part.to(strategy.device, non_blocking=True) for part in batch)
        tasks = rest[-1] if rest else None
        x = x if view is None else view(x)
        with nullcontext() if held else undisturbed(model):
            tap.open(classifier)
            try:
                avalanche_forward(model, x, tasks)
            finally:
                seen = tap.close()
        yield x, joined(seen, tasks), y, tasks


Piece = tuple[Tensor, Tensor, Tensor | None]
"""Features ``(B, D)``, labels ``(B,)`` and task labels ``(B,)`` or None."""

_PIECE = 1 << 21
"""Elements of the features of a piece: 8 MiB in float32."""


def in_pieces(batches: Iterable[Piece]) -> Iterator[Piece]:
    """Join successive batches to pieces of thousands of samples, at most 8 MiB each.

    An update of a memory costs little more for thousands of samples than for one.

    Yields:
        Pieces in order. The next one overwrites the features of the one before.
    """
    buffer: Tensor | None = None
    filled = 0
    columns: list[Any] = []
    for features, *column in batches:
        if buffer is None or filled + len(features) > len(buffer):
            if buffer is not None and filled:
                yield buffer[:filled], *_joined(columns)
            filled, columns = 0, []
            if buffer is None or len(features) > len(buffer):
                rows = max(len(features), _PIECE // features.shape[1])
                buffer = features.new_empty((rows, features.shape[1]))
        buffer[filled : filled + len(features)] = features
        filled += len(features)
        columns.append(column)
    if buffer is not None and filled:
        yield buffer[:filled], *_joined(columns)


def _joined(columns: list[Any]) -> tuple[Tensor, Tensor | None]:
    labels, tasks = zip(*columns, strict=True)
    return torch.cat(labels), None if tasks[0] is None else torch.cat(tasks)


def _batches(dataset: Any, size: int, num_workers: int) -> Iterator[Any]:
    """Mini-batches in order."""
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


def classes_of(dataset: Any) -> Tensor:
    """Class ids ``(C,)`` in ``dataset``, ascending.

    Not by ``dataset.targets.uniques``, for which Avalanche visits every sample.
    """
    return torch.from_numpy(integers(dataset.targets)).unique()


class Signature:
    """What tells samples from other samples: label and one projection of each input."""

    def __init__(self) -> None:
        self._direction: Tensor | None = None
        self._labels: list[Tensor] = []
        self._projections: list[Tensor] = []

    def add(self, x: Tensor, labels: Tensor) -> None:
        """Take in inputs ``(B, ...)`` and labels ``(B,)``."""
        flat = x.flatten(1).float()
        if self._direction is None or len(self._direction) != flat.shape[1]:
            places = torch.arange(flat.shape[1], dtype=flat.dtype, device=flat.device)
            self._direction = torch.sin(places)
        self._labels.append(labels)
        self._projections.append(flat @ self._direction)

    def value(self) -> Tensor:
        """``(2, N)`` of all samples, on the CPU."""
        projections = torch.cat(self._projections)
        return torch.stack([torch.cat(self._labels).to(projections.dtype), projections]).cpu()
