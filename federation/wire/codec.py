"""Statistics of a memory as a handful of arrays, at a stated precision.

Flower pays for every array (some 20 ms each in a deployment), hardly for bytes, so all classes
travel together: at most five arrays whatever the number of classes.

=========== =============================================== =====================================
array       content                                         type
=========== =============================================== =====================================
``classes`` ``(2, C)`` class ids and counts                 int64
``sum``     sums, or means if rounded                       by precision
``raw``     the same before the feature map, where kept     by precision
``second``  second moments, upper triangles only            by precision
``second_high`` upper words of those, if any is not zero    int64, ``exact`` and ``merged`` only
``scale``   one factor a row of the three, joined           float64, only ``float16``, ``int8``
=========== =============================================== =====================================

=========== ====================================================== ==============================
precision   sent                                                   largest error of an entry
=========== ====================================================== ==============================
``exact``   int64 in the narrowest type that holds it, or both      none
            halves of the float64 pair (one if the other is 0)
``float32`` means                                                   2^-24 of the row's largest
``float16`` means over a power of two above the row's largest       2^-11 of the row's largest
``int8``    means over 1/127 of the row's largest                   1/254 of the row's largest
=========== ====================================================== ==============================

A row is a class's mean (or second moment over its count); the error of a sum is that of the mean
times the count. Each message is rounded by itself, so after ``k`` deltas the errors of sums add up.
The second moment is symmetric up to the rounding of its products; the upper triangle speaks for
both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from protocl.errors import DataError
from protocl.federation.wire.statistics import (
    INTEGER_TYPES,
    Arrays,
    Packed,
    PackedForm,
    Precision,
    extremes,
    narrowest,
)
from protocl.memory import PrototypeMemory
from protocl.memory.summation import words_of_floats

ERROR_BOUNDS: dict[str, float] = {
    "exact": 0.0,
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "int8": 1 / 254,
}
"""Largest error of an entry of a mean, as a share of the largest magnitude in its row."""

UPPER = "second_high"
"""The array of upper words."""

TOO_LARGE = (
    "second moments beyond 64 bits: one contribution holds one word a number; send fewer samples "
    "at a time, or use a larger step"
)

_INT64 = np.dtype(np.int64)


# -- to arrays ----------------------------------------------------------------------------------


def pack(memory: PrototypeMemory, precision: Precision = "exact") -> Arrays:
    """The arrays that stand for ``memory``.

    Raises:
        ValueError: ``precision`` is unknown, or float32 cannot hold a mean.
    """
    if precision not in ERROR_BOUNDS:
        raise ValueError(f"precision='{precision}': expected one of {', '.join(ERROR_BOUNDS)}")
    parts = {name: part.cpu().numpy() for name, part in memory.parts().items()}
    counts = parts["count"]
    arrays: Arrays = {"classes": np.array((parts["class_ids"], counts))}
    scales = []
    for name, form in memory.forms.items():
        sums, half = parts[name], parts.get(f"{name}_low", parts.get(f"{name}_high"))
        if precision == "exact":
            arrays |= _pack_exact(name, sums, half)
            continue
        values = _in_features(sums, half, form.unit)
        values = values[None] if form.shared else values
        arrays[name], scale = _round(values / _weights(counts, form.shared), precision)
        scales.append(scale)
    if precision in ("float16", "int8"):
        arrays["scale"] = np.concatenate(scales)
    return arrays


def pack_exactly(memory: PrototypeMemory) -> Packed:
    """All that ``memory`` holds, in arrays of its own.

    Raises:
        OverflowError: a second moment takes two words, which one contribution may not.
    """
    arrays = pack(memory)
    if UPPER in arrays:
        raise OverflowError(TOO_LARGE)
    ids, counts = arrays.pop("classes")
    # In floating point what was packed may be the memory's own tensors.
    own = arrays if memory.exact else {name: array.copy() for name, array in arrays.items()}
    return Packed.measured(ids, counts, own)


def _pack_exact(name: str, sums: NDArray[Any], half: NDArray[Any] | None) -> Arrays:
    if sums.dtype == np.float64:
        return {name: sums[None] if half is None or not half.any() else np.stack([sums, half])}
    if half is not None:  # what the lower words are without the upper, nobody may take for sums
        return {name: sums, UPPER: half}
    return {name: sums.astype(narrowest(*map(int, extremes(sums))))}


def _in_features(sums: NDArray[Any], half: NDArray[Any] | None, unit: float) -> NDArray[np.float64]:
    """Sums in units of the features."""
    if sums.dtype == np.float64:
        return sums if half is None else np.asarray(sums + half)
    return np.asarray((sums if half is None else sums + half * 2.0**64) * unit)


def _round(
    rows: NDArray[np.float64], precision: Precision
) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """Rows ``(R, N)``, maybe none, at ``precision``, and the factor of each ``(R,)``."""
    if precision == "float32":
        rounded = rows.astype(np.float32)
        if not np.isfinite(rounded).all():
            raise ValueError("a mean exceeds the range of float32; scale the features down")
        return rounded, np.ones(len(rows))
    largest = np.abs(rows).max(axis=1, initial=0.0)
    if precision == "int8":
        # Of less, 1/127 has no bits left, or is zero: the squares of features below 1e-152.
        scale = np.where(largest > 127 * np.finfo(np.float64).tiny, largest / 127, 1.0)
        return np.rint(rows / scale[:, None]).astype(np.int8), scale
    exponents = np.frexp(largest)[1]
    scale = np.ldexp(1.0, exponents)
    return (rows / scale[:, None]).astype(np.float16), scale


def _weights(counts: NDArray[np.int64], shared: bool) -> NDArray[np.float64]:
    """``(rows, 1)`` the counts by which sums are divided to become means."""
    each = counts.astype(np.float64)[:, None]
    return each.sum(axis=0, keepdims=True).clip(min=1) if shared else each


# -- from arrays --------------------------------------------------------------------------------


def unpack(
    form: PackedForm,
    arrays: Mapping[str, NDArray[Any]],
    precision: Precision,
    *,
    two_words: bool = False,
) -> Packed:
    """Read packed ``arrays`` and check them; those of precision ``exact`` are taken as they are.

    Args:
        form: what they are.
        arrays: by name.
        precision: at which they were packed.
        two_words: whether they may hold upper words, as a merged memory does and one contribution
            does not.

    Raises:
        DataError: an array is missing, superfluous or of the wrong shape or type, or a value
            does not fit fixed point.
    """
    expected = {"classes", *form.shapes, *(("scale",) if precision in ("float16", "int8") else ())}
    if two_words and form.upper and precision == "exact" and UPPER in arrays:
        expected.add(UPPER)
    if arrays.keys() != expected:
        raise DataError(f"arrays are {sorted(arrays)}; expected {sorted(expected)}")
    classes = arrays["classes"]
    if classes.ndim != 2 or len(classes) != 2 or classes.dtype != _INT64:
        raise DataError(
            f"array 'classes' is {classes.shape} {classes.dtype}; expected (2, C) int64"
        )
    ids, counts = form.same_ids(classes[0]), classes[1]
    if precision == "exact":
        sums = {name: arrays[name] for name in (*form.shapes, UPPER) if name in expected}
        for name, array in sums.items():
            _check_exact(form, "second" if name == UPPER else name, array, len(ids))
        return Packed.measured(ids, counts, sums)
    restored = _restored(form, arrays, counts, precision, two_words=two_words)
    return Packed.measured(ids, counts, restored)


def _check_exact(form: PackedForm, name: str, array: NDArray[Any], classes: int) -> None:
    shape = form.shape(name, classes)
    if form.exact:
        if array.shape != shape or array.dtype not in INTEGER_TYPES:
            raise DataError(
                f"array '{name}' is {array.shape} {array.dtype}; expected {shape} of integers"
            )
        return
    if array.ndim == 0 or array.shape[1:] != shape or len(array) not in (1, 2):
        raise DataError(f"array '{name}' is {array.shape}; expected (1 or 2, *{shape})")
    if array.dtype != np.float64:
        raise DataError(f"array '{name}' has type {array.dtype}; expected float64")


def _restored(
    form: PackedForm,
    arrays: Mapping[str, NDArray[Any]],
    counts: NDArray[np.int64],
    precision: Precision,
    *,
    two_words: bool,
) -> Arrays:
    """Sums of the rounded means."""
    rows = {name: 1 if name == form.pooled else len(counts) for name in form.shapes}
    scale = arrays.get("scale")
    if scale is not None and (scale.shape != (sum(rows.values()),) or scale.dtype != float):
        raise DataError(
            f"array 'scale' is {scale.shape} {scale.dtype}; "
            f"expected ({sum(rows.values())},) float64"
        )
    restored: Arrays = {}
    place = 0
    for name, number in rows.items():
        array, shape = arrays[name], (number, *form.shapes[name])
        if array.shape != shape or array.dtype != np.dtype(precision):
            raise DataError(
                f"array '{name}' is {array.shape} {array.dtype}; expected {shape} {precision}"
            )
        factors = np.ones(number) if scale is None else scale[place : place + number]
        place += number
        # In place: fresh arrays of this size cost more than the arithmetic.
        with np.errstate(over="ignore", invalid="ignore"):  # they are refused with the values
            sums = np.multiply(array, factors[:, None], dtype=np.float64)
            sums *= _weights(counts, name == form.pooled)
        sums = sums[0] if name == form.pooled else sums
        upper = form.upper if two_words and name == "second" else None
        restored |= _whole_numbers(form, name, sums, upper) if form.exact else {name: sums[None]}
    return restored


def _whole_numbers(
    form: PackedForm, name: str, sums: NDArray[np.float64], upper: str | None
) -> Arrays:
    """In units of fixed point; what is in ``sums`` is lost.

    Args:
        form: what they are.
        name: of the sum.
        sums: in units of the features.
        upper: name for upper words, where there may be some.
    """
    np.rint(np.divide(sums, form.units[name], out=sums), out=sums)
    least, most = extremes(sums)
    if -(2.0**63) < least <= most < 2.0**63:  # also false for NaN
        return {name: sums.astype(narrowest(int(least), int(most)))}
    if upper is None or not -(2.0**126) < least <= most < 2.0**126:
        raise DataError(f"array '{name}' does not fit fixed point with step {form.empty.step:g}")
    words = words_of_floats(torch.from_numpy(sums))
    return {key: word.numpy() for key, word in zip((name, upper), words, strict=True)}
