"""Contributions added up in the form in which they came, on their way into a memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocl.federation.wire.statistics import Arrays, Packed, PackedForm
from protocl.memory import PrototypeMemory

TERMS = 1024
"""Contributions in floating point after which a block is full.

Its sums are plain float64: an entry is off by at most 1024 roundings, 1.2e-13 of the magnitudes
added if all go one way. The memory into which a block goes adds no error of its own
(:mod:`protocl.memory.summation`), so the error does not grow with the number of contributions.
"""

Rows = NDArray[np.intp] | slice

_PLACES = 1024
"""Lists of classes whose rows are remembered at most: clients repeat a few."""

_NARROW = np.iinfo(np.int32).max
_WIDE = np.iinfo(np.int64).max


class Block:
    """Sums of some contributions, without a memory or a table for each of them.

    In fixed point integers of 32 bits are added as such while no sum can leave their range, which
    moves half the bytes and needs no conversion; all sums are exact.

    Args:
        form: how the contributions are packed.
    """

    def __init__(self, form: PackedForm) -> None:
        self._form = form
        self._reset(np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return self._terms

    @property
    def class_ids(self) -> NDArray[np.int64]:
        """``(C,)`` classes of which it has a row."""
        return self._class_ids

    @property
    def full(self) -> bool:
        """Whether it must be emptied before more is added."""
        return self._terms >= TERMS and not self._form.exact

    def add(self, packed: Packed) -> bool:
        """Add a contribution; False, and nothing is added, where there is no room for it.

        There is room while all sums, and those of the memory that the block was told of, stay in
        64 bits. What has upper words of its own goes into a memory without a block.
        """
        if self._form.upper in packed.sums:
            return False
        for name, reach in packed.reach.items():
            if self._reach[name] + reach > _WIDE:
                return False
        rows = self._rows_for(packed.class_ids)
        self._terms += 1
        _add(self._counts, rows, packed.counts)
        for name, array in packed.sums.items():
            where = None if name == self._form.pooled else rows
            if self._form.exact:
                self._add_integers(name, where, array, packed.reach[name])
                continue
            for half, part in enumerate(array):
                _add(self._sums[name][half], where, part)
        return True

    def empty_into(self, memory: PrototypeMemory) -> None:
        """Add all sums to ``memory`` and begin anew."""
        if not self._terms:
            return
        for name in self._narrow:
            self._widen(name)
        packed = Packed(self._class_ids, self._counts, self._sums, self._reach)
        here = self._counts > 0  # not all classes of the blocks before come up again
        packed = packed if here.all() else packed.subset(here, self._form)
        memory.merge(self._form.memory(packed))
        self._reset(self._class_ids)
        self.learn_reach(memory)

    def learn_reach(self, memory: PrototypeMemory) -> None:
        """Take note of how large the sums of ``memory`` are, to which the block's will be added.

        Not of what has room for two words there, whatever the block brings.
        """
        if not self._form.exact:
            return
        for name in self._reach:
            if memory.other_half(name) is not None:
                self._reach[name] = 0
                continue
            values = memory.get_buffer(name)
            # Not abs(), under which the least int64 stays negative.
            self._reach[name] = max(int(values.max()), -int(values.min())) if len(values) else 0

    # -- parts ------------------------------------------------------------------------------

    def _reset(self, class_ids: NDArray[np.int64]) -> None:
        form, classes = self._form, len(class_ids)
        self._class_ids = class_ids
        self._places: dict[bytes, Rows | None] = {}
        self._terms = 0
        self._counts = np.zeros(classes, dtype=np.int64)
        self._reach = dict.fromkeys(form.shapes, 0)
        self._narrow: Arrays = {}
        self._narrow_reach = dict.fromkeys(form.shapes, 0)
        self._sums: Arrays = {}
        for name in form.shapes:
            shape = form.shape(name, classes)
            if form.exact:
                self._narrow[name] = np.zeros(shape, dtype=np.int32)
            self._sums[name] = np.zeros(shape, np.int64) if form.exact else np.zeros((2, *shape))

    def _add_integers(
        self, name: str, rows: Rows | None, array: NDArray[np.generic], reach: int
    ) -> None:
        self._reach[name] += reach
        if reach > _NARROW:
            _add(self._sums[name], rows, array)
            return
        if self._narrow_reach[name] + reach > _NARROW:
            self._widen(name)
        self._narrow_reach[name] += reach
        _add(self._narrow[name], rows, array)

    def _widen(self, name: str) -> None:
        _add(self._sums[name], None, self._narrow[name])
        self._narrow[name][...] = 0
        self._narrow_reach[name] = 0

    def _rows_for(self, ids: NDArray[np.int64]) -> Rows | None:
        """Rows of the classes ``ids``, made for those not seen before; None for all rows."""
        if ids is self._class_ids:
            return None
        if (key := ids.tobytes()) not in self._places:
            rows = self._find_rows(ids)  # forgets all places where it makes new rows
            if len(self._places) >= _PLACES:
                self._places.clear()
            self._places[key] = rows
        return self._places[key]

    def _find_rows(self, ids: NDArray[np.int64]) -> Rows | None:
        known = self._class_ids
        if np.array_equal(ids, known):
            self._class_ids = ids
            return None
        # Both are sorted; the unions of numpy would sort and hash them once more.
        rows = np.searchsorted(known, ids)
        if len(known) == 0 or (known.take(rows, mode="clip") != ids).any():
            union = np.union1d(known, ids)
            self._grow(union, np.searchsorted(union, known))
            rows = np.searchsorted(union, ids)
        return None if len(ids) == len(self._class_ids) else _narrowed(rows)

    def _grow(self, class_ids: NDArray[np.int64], places: NDArray[np.intp]) -> None:
        self._class_ids = class_ids
        self._places.clear()
        axis = 0 if self._form.exact else 1
        self._counts = _spread(self._counts, places, len(class_ids), 0)
        for name in self._form.shapes:
            if name == self._form.pooled:
                continue
            self._sums[name] = _spread(self._sums[name], places, len(class_ids), axis)
            if self._form.exact:
                self._narrow[name] = _spread(self._narrow[name], places, len(class_ids), 0)


def _narrowed(rows: NDArray[np.intp]) -> Rows:
    """Ascending rows as a slice where they follow each other: added in place, not gathered."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def _add(total: NDArray[Any], rows: Rows | None, term: NDArray[Any]) -> None:
    """Add ``term`` to different rows of ``total``, or to all of it."""
    if rows is None:
        np.add(total, term, out=total)
    else:
        total[rows] += term


def _spread(values: NDArray[Any], places: NDArray[np.intp], size: int, axis: int) -> NDArray[Any]:
    """``values`` at ``places`` along an axis of length ``size``, zeros elsewhere."""
    shape = list(values.shape)
    shape[axis] = size
    grown = np.zeros(shape, dtype=values.dtype)
    grown[(slice(None),) * axis + (places,)] = values
    return grown
