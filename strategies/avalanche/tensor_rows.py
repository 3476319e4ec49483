"""The tensors behind an Avalanche dataset, found without reading it sample by sample.

An ``AvalancheDataset`` is a tree: subsets and concatenations over the user's datasets. Where the
leaves hold tensors and nothing on the way transforms an input, a mini-batch is one indexing
operation. Avalanche assembles it from four nested calls a sample instead (about 10 us a sample).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.classification_dataset import (
    _TensorClassificationDataset,
    lookup,
)
from avalanche.benchmarks.utils.data import _FlatDataWithTransform
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData, LazyIndices, LazyRange
from avalanche.benchmarks.utils.transform_groups import TransformGroups
from avalanche.benchmarks.utils.transforms import TupleTransform
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from protocl.data import TensorData, as_images

Rows = npt.NDArray[np.int64]


class NotInMemory(Exception):  # noqa: N818 - an answer, not a fault
    """The dataset cannot be served as tensors; the message says why."""


@dataclass(frozen=True, eq=False)
class Leaf:
    """Inputs and labels in memory, at the end of a branch of a dataset.

    Attributes:
        x: inputs ``(N, ...)``.
        y: labels ``(N,)`` int64.
        scaled: whether ``uint8`` inputs are served as float32 in [0, 1].
    """

    x: Tensor
    y: Tensor
    scaled: bool

    def inputs(self, rows: Tensor) -> Tensor:
        """Inputs ``(B, ...)`` at ``rows`` ``(B,)``, in memory of their own."""
        x = self.x.index_select(0, rows)
        return as_images(x) if self.scaled else x


@dataclass(frozen=True, eq=False)
class TensorRows:
    """Samples as rows of tensors.

    Attributes:
        leaf: holds the inputs.
        rows: ``(N,)`` int64, the row of ``leaf`` at which each sample's input is.
        columns: ``(N,)`` tensors that follow the input in a mini-batch: label, task label.
    """

    leaf: Leaf
    rows: Tensor
    columns: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in (self.leaf.x, self.rows, *self.columns))

    def take(self, index: Tensor) -> TensorRows:
        """The samples at the positions ``index`` ``(B,)``; inputs are not copied."""
        return TensorRows(self.leaf, self.rows[index], tuple(c[index] for c in self.columns))

    def batch(self) -> list[Tensor]:
        """All samples as one mini-batch ``[x, y]`` or ``[x, y, t]``."""
        return [self.leaf.inputs(self.rows), *self.columns]

    def split(self, size: int) -> Iterator[list[Tensor]]:
        """Mini-batches of ``size`` samples in order; the last one may be smaller."""
        # Each batch of inputs is gathered by itself, not cut out of one large gather: the last
        # bit of a matrix product can depend on how its operands are aligned.
        columns = [column.split(size) for column in self.columns]
        for rows, *rest in zip(self.rows.split(size), *columns, strict=True):
            yield [self.leaf.inputs(rows), *rest]

    def to(self, device: torch.device) -> TensorRows:
        """The same samples with every tensor on ``device``."""
        return TensorRows(
            replace(self.leaf, x=self.leaf.x.to(device)),
            self.rows.to(device),
            tuple(column.to(device) for column in self.columns),
        )


def tensor_rows(*datasets: AvalancheDataset[Any]) -> TensorRows:
    """The samples of ``datasets``, one after the other, under their current transform groups.

    Raises:
        NotInMemory: a dataset has a transform, a collate function of its own, or a leaf that is
            neither :class:`protocl.data.TensorData` nor a ``TensorDataset`` of inputs and labels.
    """
    total = sum(len(dataset) for dataset in datasets)
    parts, columns, start = [], [], 0
    for dataset in datasets:
        if dataset.collate_fn is not default_collate:
            raise NotInMemory(f"its collate function is {dataset.collate_fn}")
        flat, rows = dataset._flat_data, np.arange(len(dataset))
        found = _find(flat, rows, flat._transform_groups.current_group)
        parts.append((slice(start, start + len(dataset)), found))
        columns.append([_values(data, rows) for data in _extra_columns(dataset)])
        start += len(dataset)
    whole = _gathered(total, parts)
    leaf, leaf_rows = whole.joined()
    extra = [np.concatenate(column) for column in zip(*columns, strict=True)]
    return TensorRows(
        leaf,
        torch.from_numpy(leaf_rows).to(leaf.x.device),
        tuple(torch.from_numpy(column) for column in [whole.labels, *extra]),
    )


def _extra_columns(dataset: AvalancheDataset[Any]) -> list[Any]:
    """What a mini-batch holds after the label: nothing, or the task labels."""
    attributes = dataset._data_attributes.values()
    return [attribute.data for attribute in attributes if attribute.use_in_getitem]


@dataclass
class _Found:
    """Where ``N`` samples are, and the labels that the transforms on their way give them."""

    leaves: list[Leaf]
    leaf_of: Rows
    row_of: Rows
    labels: Rows

    def joined(self) -> tuple[Leaf, Rows]:
        """One leaf that holds all samples; the samples of several are copied into a new one."""
        if len(self.leaves) == 1:
            return self.leaves[0], self.row_of
        parts, order = [], []
        for number, leaf in enumerate(self.leaves):
            mine = np.flatnonzero(self.leaf_of == number)
            parts.append(leaf.inputs(torch.from_numpy(self.row_of[mine]).to(leaf.x.device)).cpu())
            order.append(mine)
        joined = Leaf(torch.cat(parts), torch.from_numpy(self.labels), scaled=False)
        return joined, np.argsort(np.concatenate(order))


def _find(data: Any, rows: Rows, group: str) -> _Found:
    """Follow the samples at ``rows`` ``(N,)`` of a node down to the leaves."""
    if not isinstance(data, FlatData):
        leaf = _leaf(data)
        return _Found([leaf], np.zeros_like(rows), rows, leaf.y.cpu().numpy()[rows])
    found = _gathered(
        len(rows),
        [(mine, _find(child, below, group)) for child, mine, below in _children(data, rows)],
    )
    if isinstance(data, _FlatDataWithTransform):
        for transforms in (data._frozen_transform_groups, data._transform_groups):
            found.labels = _map_labels(transforms, group, found.labels)
    return found


def _gathered(size: int, parts: list[tuple[Any, _Found]]) -> _Found:
    """``size`` samples put together from parts, each with the positions that it fills."""
    leaf_of, row_of, labels = (np.empty(size, dtype=np.int64) for _ in range(3))
    leaves: list[Leaf] = []
    for mine, part in parts:
        numbers = [_number_of(leaf, leaves) for leaf in part.leaves]
        leaf_of[mine] = np.asarray(numbers)[part.leaf_of]
        row_of[mine], labels[mine] = part.row_of, part.labels
    return _Found(leaves, leaf_of, row_of, labels)


def _children(data: FlatData[Any], rows: Rows) -> Iterator[tuple[Any, Any, Rows]]:
    """Each child that holds samples at ``rows``, which of them it holds, and their rows in it."""
    rows = _through_indices(data._indices, rows)
    if len(data._datasets) == 1:
        yield data._datasets[0], slice(None), rows
        return
    starts = np.array([0, *data._cumulative_sizes])
    child_of = np.searchsorted(starts, rows, side="right") - 1
    for number in np.unique(child_of):
        mine = np.flatnonzero(child_of == number)
        yield data._datasets[number], mine, rows[mine] - starts[number]


def _through_indices(indices: Any, rows: Rows) -> Rows:
    """Positions in the concatenation of a node's children."""
    if indices is None:
        return rows
    if isinstance(indices, LazyRange):
        return rows + indices._start + indices._offset
    if isinstance(indices, LazyIndices):
        indices._to_eager()
        indices = indices._eager_list
    return np.asarray(indices, dtype=np.int64)[rows]


def _leaf(data: Any) -> Leaf:
    if isinstance(data, TensorData):
        return Leaf(data.x, data.y, scaled=True)
    if type(data) in (TensorDataset, _TensorClassificationDataset) and len(data.tensors) == 2:
        x, y = data.tensors
        if y.ndim == 1 and y.dtype == torch.int64:
            return Leaf(x, y, scaled=False)
    raise NotInMemory(f"it ends in a {type(data).__name__}, not in tensors")


def _number_of(leaf: Leaf, leaves: list[Leaf]) -> int:
    """Position of ``leaf`` among ``leaves``; it is added when new."""
    for number, known in enumerate(leaves):
        if known.x is leaf.x and known.scaled == leaf.scaled:
            return number
    leaves.append(leaf)
    return len(leaves) - 1


def _map_labels(transforms: TransformGroups, group: str, labels: Rows) -> Rows:
    """Apply a class mapping; any other transform is refused, since it might be random."""
    transform = transforms[group]
    if transform is None:
        return labels
    steps = transform.transforms if isinstance(transform, TupleTransform) else [transform]
    on_input, *on_label = steps
    if on_input is not None:
        raise NotInMemory(f"it has the transform {on_input}")
    for step in on_label:
        if step is None:
            continue
        if not (isinstance(step, partial) and step.func is lookup):
            raise NotInMemory(f"it has the target transform {step}")
        labels = np.asarray(step.args[0], dtype=np.int64)[labels]
    return labels


def integers(attribute: DataAttribute[Any]) -> Rows:
    """Values ``(N,)`` of a per-sample attribute, such as ``dataset.targets``.

    Raises:
        NotInMemory: they are not integers.
    """
    return _values(attribute.data, np.arange(len(attribute)))


def _values(data: Any, rows: Rows) -> Rows:
    """Values ``(N,)`` of an attribute such as the task labels."""
    if isinstance(data, DataAttribute):
        data = data.data  # to iterate over the attribute itself takes a call for each sample
    if isinstance(data, ConstantSequence):
        return np.full(len(rows), data._constant_value, dtype=np.int64)
    if isinstance(data, FlatData):
        gathered = np.empty_like(rows)
        for child, mine, below_rows in _children(data, rows):
            gathered[mine] = _values(child, below_rows)
        return gathered
    return _whole_numbers(data if isinstance(data, list) else list(data))[rows]


def _whole_numbers(values: list[Any]) -> Rows:
    kinds = set(map(type, values))
    if any(issubclass(kind, Tensor | np.ndarray) for kind in kinds):  # of no dimensions
        values = [v.tolist() if isinstance(v, Tensor | np.ndarray) else v for v in values]
        kinds = set(map(type, values))
    odd = sorted(kind.__name__ for kind in kinds if not issubclass(kind, int | np.integer))
    if odd:
        raise NotInMemory(f"it has per-sample values of type {odd[0]}: expected integers")
    return np.asarray(values, dtype=np.int64)
