"""Chunks of thousands of feature vectors, joined of mini-batches.

An update of a memory costs little more for thousands of samples than for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

FeatureChunk = tuple[Tensor, Tensor, Tensor | None]
"""Features ``(B, D)``, labels ``(B,)`` and task labels ``(B,)`` or None."""

MOST_SAMPLES = 8192
"""Samples of a chunk, unless its features would exceed :data:`MOST_ELEMENTS`."""

MOST_ELEMENTS = 1 << 21
"""Elements of the features of a chunk: 8 MiB in float32."""

MOST_ELEMENTS_BY_CLASS = 1 << 24
"""The same where each class has a second moment, which every chunk reads and writes whole: with few
samples of a class in a chunk that takes longer than their products."""


class FeatureBuffer:
    """Holds copies of mini-batches of features in memory that is allocated once.

    To keep the mini-batches themselves would be slower: small tensors that outlive a training step
    lie between the large ones of the next, which the C library's allocator then returns to the
    system and asks back in every step (measured: 1,000 page faults and 2 ms a step).

    Args:
        most_elements: of the features that it holds; None for :data:`MOST_ELEMENTS`.
    """

    def __init__(self, most_elements: int | None = None) -> None:
        self._most = MOST_ELEMENTS if most_elements is None else most_elements
        self._columns: list[Tensor] = []
        self._kind: list[object] = []
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    def fits(self, batch: FeatureChunk) -> bool:
        """Whether ``batch`` can be added before the chunk is taken."""
        room = self._columns and self._filled + len(batch[0]) <= len(self._columns[0])
        return bool(room) and _kind(batch) == self._kind

    def add(self, batch: FeatureChunk) -> None:
        """Append a mini-batch; if it does not fit, the buffer must be empty."""
        if not self.fits(batch):
            self._make_room(batch)
        end = self._filled + len(batch[0])
        given = (column for column in batch if column is not None)
        for held, new in zip(self._columns, given, strict=True):
            held[self._filled : end] = new
        self._filled = end

    def _make_room(self, batch: FeatureChunk) -> None:
        if self._filled:
            raise ValueError(f"{self._filled} samples wait, and the batch does not fit: take()")
        size, width = batch[0].shape
        rows = max(size, min(MOST_SAMPLES, self._most // max(width, 1)))
        given = (column for column in batch if column is not None)
        self._columns = [column.new_empty((rows, *column.shape[1:])) for column in given]
        self._kind = _kind(batch)

    def take(self) -> FeatureChunk:
        """All that was added, in order; the next :meth:`add` overwrites it."""
        features, labels, *tasks = (column[: self._filled] for column in self._columns)
        self._filled = 0
        return features, labels, tasks[0] if tasks else None


def _kind(batch: FeatureChunk) -> list[object]:
    """What batches of one chunk have in common."""
    features, labels, tasks = batch
    return [features.shape[1], features.dtype, features.device, labels.dtype, tasks is None]


def in_chunks(
    batches: Iterable[FeatureChunk], most_elements: int | None = None
) -> Iterator[FeatureChunk]:
    """Join successive mini-batches of features to chunks.

    Args:
        batches: features, labels and task labels.
        most_elements: see :class:`FeatureBuffer`.

    Yields:
        Chunks in order. The next one overwrites the one before.
    """
    buffer = FeatureBuffer(most_elements)
    for batch in batches:
        if buffer and not buffer.fits(batch):
            yield buffer.take()
        buffer.add(batch)
    if buffer:
        yield buffer.take()
