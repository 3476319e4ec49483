"""Sums over portions: encoded, gathered, and added some thousand at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from protocl.data.readers.values import Label
from protocl.data.shards.shard import Portion
from protocl.errors import DataError
from protocl.memory import PrototypeMemory
from protocl.model.labels import ids_beside

_AT_ONCE = 4096
"""Features that are added together: an update costs as much as many rows where sums are wide."""


class Accumulator:
    """A memory that is told portions.

    Args:
        memory: fixed point, so that it does not matter how portions are grouped.
        encode: samples ``(N, ...)`` as features ``(N, D)``.
        labels: those of the classes in the memory, by id.
        names: of shards, for messages.
    """

    def __init__(
        self,
        memory: PrototypeMemory,
        encode: Callable[[Tensor], Tensor],
        labels: Mapping[int, Label],
        names: Mapping[int, str],
    ) -> None:
        self.memory = memory
        self.labels = dict(labels)
        self._ids = {label: number for number, label in labels.items()}
        self._encode, self._names = encode, names
        self._waiting: list[tuple[Portion, Tensor, Tensor]] = []
        self._rows = 0

    def add(self, portion: Portion) -> None:
        """Encode a portion, and add it with others.

        Raises:
            DataError: its labels are of another kind than those before, or a feature is not
                finite or does not fit fixed point.
        """
        if portion.x is None:
            return
        ids = self._ids_of(portion)
        self._waiting.append((portion, self._encode(portion.x), ids))
        self._rows += len(ids)
        if self._rows >= _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Add what waits, so that the memory holds all that it was told."""
        waiting, self._waiting, self._rows = self._waiting, [], 0
        if not waiting:
            return
        portions, features, ids = zip(*waiting, strict=True)
        self._update(torch.cat(features), torch.cat(ids), 0, portions)

    def _update(self, x: Tensor, ids: Tensor, first: int, portions: Sequence[Portion]) -> None:
        """Add rows; where they are refused, the halves of them, down to the row that is wrong."""
        try:
            self.memory.update(x, ids)
        except (ValueError, OverflowError) as error:
            if len(x) == 1:
                raise DataError(f"{self._called(first, portions)}: {error}") from error
            half = len(x) // 2
            self._update(x[:half], ids[:half], first, portions)
            self._update(x[half:], ids[half:], first + half, portions)

    def _called(self, row: int, portions: Sequence[Portion]) -> str:
        """The shard and the name of a row of several portions."""
        for portion in portions:
            if row < len(portion.names):
                return f"{self._names[portion.shard]}: sample '{portion.names[row]}'"
            row -= len(portion.names)
        raise IndexError(row)

    def _ids_of(self, portion: Portion) -> Tensor:
        fresh = [label for label in portion.distinct if label not in self._ids]
        if fresh:
            self._know(fresh, self._names[portion.shard])
        ids = np.array([self._ids[label] for label in portion.distinct], dtype=np.int64)
        return torch.from_numpy(ids[portion.codes])

    def _know(self, fresh: list[Label], shard: str) -> None:
        known = next(iter(self._ids), fresh[0])
        strange = [label for label in fresh if isinstance(label, str) != isinstance(known, str)]
        if strange:
            raise DataError(
                f"{shard} has the label {strange[0]!r}, others are such as {known!r}; expected "
                "either whole numbers or texts in all shards"
            )
        none = np.empty(0, dtype=np.int64)
        ids = ids_beside(np.array(fresh), none, none).tolist()
        self._ids |= dict(zip(fresh, ids, strict=True))
        self.labels |= dict(zip(ids, fresh, strict=True))
