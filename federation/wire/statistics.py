"""Statistics as they lie in a message: checked in shape and type, but not copied.

A memory is a module with a dozen tensors, which takes longer to make than to add. What arrives is
therefore read, checked, added and kept in this form (the arrays are those of
:mod:`protocl.federation.wire.codec`); a memory is made of it where somebody wants one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from protocl.memory import PrototypeMemory

Precision = Literal["exact", "float32", "float16", "int8"]
Arrays = dict[str, NDArray[Any]]

_INTEGERS = (np.int8, np.int16, np.int32, np.int64)
_LARGEST = {kind: int(np.iinfo(kind).max) for kind in _INTEGERS}
INTEGER_TYPES = frozenset(map(np.dtype, _INTEGERS))


class Packed(NamedTuple):
    """Statistics of some classes.

    Attributes:
        class_ids: ``(C,)`` int64.
        counts: ``(C,)`` int64.
        sums: by name, as precision ``exact`` sends them: integers of any width in fixed point,
            one or both halves of the float64 pair else; of symmetric matrices the upper triangles.
        reach: by name, no integer is larger in magnitude than this; empty in floating point.
    """

    class_ids: NDArray[np.int64]
    counts: NDArray[np.int64]
    sums: Arrays
    reach: dict[str, int]

    @classmethod
    def measured(
        cls, class_ids: NDArray[np.int64], counts: NDArray[np.int64], sums: Arrays
    ) -> Packed:
        """Measure the reach of the sums: a look at every integer of 32 or 64 bits."""
        reach = {}
        for name, array in sums.items():
            if array.dtype.kind == "i":
                reach[name] = _reach(array)
        return cls(class_ids, counts, sums, reach)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in (self.class_ids, self.counts, *self.sums.values()))

    def subset(self, kept: NDArray[np.bool_], form: PackedForm) -> Packed:
        """The classes where ``kept`` ``(C,)`` is true, and all of a sum that classes share."""
        axis = 0 if form.exact else 1
        sums = {
            name: array if name == form.pooled else array.compress(kept, axis=axis)
            for name, array in self.sums.items()
        }
        return Packed(self.class_ids[kept], self.counts[kept], sums, self.reach)

    def to_tensors(self) -> dict[str, Any]:
        """A form that is written to a file without a copy in memory: tensors on the same bytes."""
        with warnings.catch_warnings():
            # The bytes of a message are read-only, and they are only read.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return {
                "class_ids": torch.from_numpy(self.class_ids),
                "counts": torch.from_numpy(self.counts),
                "sums": {name: torch.from_numpy(array) for name, array in self.sums.items()},
                "reach": self.reach,
            }

    @classmethod
    def from_tensors(cls, saved: Mapping[str, Any]) -> Packed:
        """What :meth:`to_tensors` gave."""
        sums = {name: tensor.numpy() for name, tensor in saved["sums"].items()}
        return cls(saved["class_ids"].numpy(), saved["counts"].numpy(), sums, saved["reach"])


class PackedForm:
    """How the statistics of one kind of memory are packed.

    Args:
        like: a memory of that kind; it is not changed.

    Attributes:
        empty: a memory of that kind without samples; it is not changed.
        exact: whether sums are integers.
        shapes: name -> shape of one row, or of the whole where classes share it.
        pooled: name of the sum that all classes share, if any.
        units: name -> what an integer of fixed point stands for; 1 in floating point.
        upper: name of the upper words of second moments, where a memory has a place for them.
    """

    def __init__(self, like: PrototypeMemory) -> None:
        self.empty = like.empty_like().cpu()
        self.exact, self.level, self.width = like.exact, like.level, like.width
        forms = like.forms
        self.shapes = {name: form.shape for name, form in forms.items()}
        self.units = {name: form.unit for name, form in forms.items()}
        self.pooled = next((name for name, form in forms.items() if form.shared), None)
        half = like.other_half("second")
        self.upper = half if like.exact else None
        self._ids, self._ids_key = np.zeros(0, dtype=np.int64), b""

    def shape(self, name: str, classes: int) -> tuple[int, ...]:
        """Shape of a sum for ``classes`` classes."""
        return self.shapes[name] if name == self.pooled else (classes, *self.shapes[name])

    def same_ids(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give equal class ids of the message before in their place, since those were checked."""
        key = ids.tobytes()
        if key != self._ids_key:
            self._ids_key, self._ids = key, ids.copy()
        return self._ids

    def memory(self, packed: Packed) -> PrototypeMemory:
        """A memory of its own with these statistics."""
        parts = {"class_ids": packed.class_ids.copy(), "count": packed.counts.copy()}
        for name, array in packed.sums.items():
            if self.exact:
                parts[name] = array.astype(np.int64)
            else:
                parts |= zip((name, f"{name}_low"), array.copy(), strict=False)
        return PrototypeMemory.from_parts(
            self.empty, {name: torch.from_numpy(part) for name, part in parts.items()}
        )

    def values(self, packed: Packed, name: str) -> NDArray[np.float64]:
        """A sum in units of the features, float64, of symmetric matrices the triangles."""
        array = packed.sums[name]
        whole = array.astype(np.float64) if self.exact else array.sum(axis=0, dtype=np.float64)
        if name == "second" and self.upper in packed.sums:
            whole = whole + packed.sums[self.upper] * 2.0**64
        return np.asarray(whole * self.units[name], dtype=np.float64)


def extremes(values: NDArray[Any]) -> tuple[Any, Any]:
    """Least and largest of some numbers; zeros where there are none."""
    if not values.size:
        return 0, 0
    # Not abs(), which writes a copy and leaves the least integer negative.
    return np.minimum.reduce(values, None), np.maximum.reduce(values, None)


def narrowest(least: int, most: int) -> type[np.signedinteger[Any]]:
    """The smallest type of integers that holds both bounds."""
    reach = max(most, -1 - least)
    return next(kind for kind in _INTEGERS if reach <= _LARGEST[kind])


def _reach(array: NDArray[np.signedinteger[Any]]) -> int:
    if array.itemsize <= 2 or not array.size:
        return _LARGEST[array.dtype.type] + 1
    least, most = extremes(array)
    return max(int(most), -int(least))
