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

from protocl.errors import DataError
from protocl.memory import PrototypeMemory

Precision = Literal["exact", "float32", "float16", "int8"]
Arrays = dict[str, NDArray[Any]]

_INTEGERS = (np.int8, np.int16, np.int32, np.int64)
_LARGEST = {kind: int(np.iinfo(kind).max) for kind in _INTEGERS}
_INT64 = np.dtype(np.int64)
_INTEGER_TYPES = frozenset(map(np.dtype, _INTEGERS))


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
        """With the reach of the sums, which takes a look at every integer of 32 or 64 bits."""
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
        exact: whether sums are integers.
        shapes: name -> shape of one row, or of the whole where classes share it.
        pooled: name of the sum that all classes share, if any.
        units: name -> what an integer of fixed point stands for; 1 in floating point.
    """

    def __init__(self, like: PrototypeMemory) -> None:
        self._template = like.empty_like().cpu()
        self.exact, self.level, self.width = like.exact, like.level, like.width
        self.pooled = "second" if like.level == "shared" else None
        self._symmetric = "second" if like.level in ("shared", "full") else None
        triangle = like.width * (like.width + 1) // 2
        self.shapes: dict[str, tuple[int, ...]] = {
            name: (triangle,) if name == self._symmetric else tuple(n for n in shape if n != -1)
            for name, shape in like._shapes.items()
        }
        self.units = dict.fromkeys(self.shapes, 1.0)
        if like.exact:
            self.units = {n: like.step**2 if n == "second" else like.step for n in self.shapes}
        self._ids, self._ids_key = np.zeros(0, dtype=np.int64), b""
        self._plain = {"classes", *self.shapes}
        self._scaled = {*self._plain, "scale"}

    def shape(self, name: str, classes: int) -> tuple[int, ...]:
        """Shape of a sum for ``classes`` classes."""
        return self.shapes[name] if name == self.pooled else (classes, *self.shapes[name])

    def read(self, arrays: Mapping[str, NDArray[Any]], precision: Precision) -> Packed:
        """What ``arrays`` say; those of precision ``exact`` are taken as they are.

        Raises:
            DataError: an array is missing, superfluous or of the wrong shape or type, or a value
                does not fit fixed point.
        """
        expected = self._scaled if precision in ("float16", "int8") else self._plain
        if arrays.keys() != expected:
            raise DataError(f"arrays are {sorted(arrays)}; expected {sorted(expected)}")
        classes = arrays["classes"]
        if classes.ndim != 2 or len(classes) != 2 or classes.dtype != _INT64:
            raise DataError(
                f"array 'classes' is {classes.shape} {classes.dtype}; expected (2, C) int64"
            )
        ids, counts = self._same_ids(classes[0]), classes[1]
        if precision == "exact":
            sums = dict(arrays)
            del sums["classes"]
            for name, array in sums.items():
                self._check_exact(name, array, len(ids))
            return Packed.measured(ids, counts, sums)
        return Packed.measured(ids, counts, self._restored(arrays, counts, precision))

    def _same_ids(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The array of an earlier message that says the same, for then it was looked at."""
        key = ids.tobytes()
        if key != self._ids_key:
            self._ids_key, self._ids = key, ids.copy()
        return self._ids

    def memory(self, packed: Packed) -> PrototypeMemory:
        """A memory of its own with these statistics."""
        memory = self._template.empty_like()
        memory.class_ids = torch.from_numpy(packed.class_ids.copy())
        memory.count = torch.from_numpy(packed.counts.copy())
        for name, array in packed.sums.items():
            if self.exact:
                setattr(memory, name, self._whole(name, array.astype(np.int64)))
                continue
            setattr(memory, name, self._whole(name, array[0].copy()))
            low = array[1].copy() if len(array) == 2 else np.zeros(array.shape[1:])
            setattr(memory, f"{name}_low", self._whole(name, low))
        return memory

    def values(self, packed: Packed, name: str) -> NDArray[np.float64]:
        """A sum in units of the features, float64, of symmetric matrices the triangles."""
        array = packed.sums[name]
        whole = array.astype(np.float64) if self.exact else array.sum(axis=0, dtype=np.float64)
        return np.asarray(whole * self.units[name], dtype=np.float64)

    # -- parts ------------------------------------------------------------------------------

    def _check_exact(self, name: str, array: NDArray[Any], classes: int) -> None:
        shape = self.shape(name, classes)
        if self.exact:
            if array.shape != shape or array.dtype not in _INTEGER_TYPES:
                raise DataError(
                    f"array '{name}' is {array.shape} {array.dtype}; expected {shape} of integers"
                )
            return
        if array.ndim == 0 or array.shape[1:] != shape or len(array) not in (1, 2):
            raise DataError(f"array '{name}' is {array.shape}; expected (1 or 2, *{shape})")
        if array.dtype != np.float64:
            raise DataError(f"array '{name}' has type {array.dtype}; expected float64")

    def _restored(
        self,
        arrays: Mapping[str, NDArray[Any]],
        counts: NDArray[np.int64],
        precision: Precision,
    ) -> Arrays:
        """Sums of the rounded means."""
        rows = {name: 1 if name == self.pooled else len(counts) for name in self.shapes}
        scale = arrays.get("scale")
        if scale is not None and (scale.shape != (sum(rows.values()),) or scale.dtype != float):
            raise DataError(
                f"array 'scale' is {scale.shape} {scale.dtype}; "
                f"expected ({sum(rows.values())},) float64"
            )
        restored: Arrays = {}
        place = 0
        for name, number in rows.items():
            factors = np.ones(number) if scale is None else scale[place : place + number]
            place += number
            restored[name] = self._sums(name, arrays[name], factors, counts, precision)
        return restored

    def _sums(
        self,
        name: str,
        array: NDArray[Any],
        factors: NDArray[Any],
        counts: NDArray[np.int64],
        precision: Precision,
    ) -> NDArray[Any]:
        shape = (len(factors), *self.shapes[name])
        if array.shape != shape or array.dtype != np.dtype(precision):
            raise DataError(
                f"array '{name}' is {array.shape} {array.dtype}; expected {shape} {precision}"
            )
        weights = counts.astype(np.float64)
        weights = weights.sum(keepdims=True).clip(min=1) if name == self.pooled else weights
        # In place: fresh arrays of this size cost more than the arithmetic.
        with np.errstate(over="ignore", invalid="ignore"):  # they are refused with the values
            sums = np.multiply(array, factors[:, None], dtype=np.float64)
            sums *= weights[:, None]
        sums = sums[0] if name == self.pooled else sums
        return self._whole_numbers(name, sums) if self.exact else sums[None]

    def _whole_numbers(
        self, name: str, sums: NDArray[np.float64]
    ) -> NDArray[np.signedinteger[Any]]:
        """In units of fixed point; what is in ``sums`` is lost."""
        np.rint(np.divide(sums, self.units[name], out=sums), out=sums)
        least, most = extremes(sums)
        if not -(2.0**63) < least <= most < 2.0**63:  # also false for NaN
            raise DataError(
                f"array '{name}' does not fit fixed point with step {self._template.step:g}"
            )
        return sums.astype(narrowest(int(least), int(most)))

    def _whole(self, name: str, values: NDArray[Any]) -> torch.Tensor:
        """Triangles become symmetric matrices again."""
        tensor = torch.from_numpy(values)
        if name != self._symmetric:
            return tensor
        rows, columns = torch.triu_indices(self.width, self.width)
        whole = tensor.new_empty(*tensor.shape[:-1], self.width, self.width)
        whole[..., rows, columns] = tensor
        whole[..., columns, rows] = tensor
        return whole


def extremes(values: NDArray[Any]) -> tuple[Any, Any]:
    """Least and largest; zeros where there are none."""
    if not values.size:
        return 0, 0
    # Not abs(), which writes a copy and leaves the least integer negative.
    return np.minimum.reduce(values, None), np.maximum.reduce(values, None)


def narrowest(least: int, most: int) -> type[np.signedinteger[Any]]:
    """The smallest type of integers that holds both."""
    reach = max(most, -1 - least)
    return next(kind for kind in _INTEGERS if reach <= _LARGEST[kind])


def _reach(array: NDArray[np.signedinteger[Any]]) -> int:
    if array.itemsize <= 2 or not array.size:
        return _LARGEST[array.dtype.type] + 1
    least, most = extremes(array)
    return max(int(most), -int(least))
