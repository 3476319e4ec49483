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
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocl.errors import DataError
from protocl.memory import PrototypeMemory

Precision = Literal["exact", "float32", "float16", "int8"]
Arrays = dict[str, NDArray[np.generic]]

ERROR_BOUNDS: dict[str, float] = {
    "exact": 0.0,
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "int8": 1 / 254,
}
"""Largest error of an entry of a mean, as a share of the largest magnitude in its row."""

_INTEGERS = (np.int8, np.int16, np.int32, np.int64)


def pack(memory: PrototypeMemory, precision: Precision = "exact") -> Arrays:
    """The arrays that stand for ``memory``.

    Raises:
        ValueError: ``precision`` is unknown, or float32 cannot hold a mean.
    """
    if precision not in ERROR_BOUNDS:
        raise ValueError(f"precision='{precision}': expected one of {', '.join(ERROR_BOUNDS)}")
    ids, counts = memory.get_buffer("class_ids"), memory.get_buffer("count")
    arrays: Arrays = {"classes": torch.stack([ids, counts]).cpu().numpy()}
    scales = []
    for name in memory._shapes:
        if precision == "exact":
            arrays[name] = _pack_exact(memory, name)
            continue
        rows = _triangle(memory._value(name), name, memory) / _weights(memory, name, counts)
        arrays[name], scale = _round(rows.cpu().numpy(), precision)
        scales.append(scale)
    if precision in ("float16", "int8"):
        arrays["scale"] = np.concatenate(scales)
    return arrays


def unpack(
    arrays: Mapping[str, NDArray[np.generic]], like: PrototypeMemory, precision: Precision
) -> PrototypeMemory:
    """The memory that :func:`pack` was given, up to the stated error.

    Args:
        arrays: what came; only their number of classes is free.
        like: a memory of the same level, width and arithmetic; it is not changed.
        precision: how they were packed.

    Raises:
        DataError: an array is missing, superfluous or of the wrong shape or type.
    """
    expected = {"classes", *like._shapes} | (
        {"scale"} if precision in ("float16", "int8") else set()
    )
    if set(arrays) != expected:
        raise DataError(f"arrays are {sorted(arrays)}; expected {sorted(expected)}")
    classes = arrays["classes"]
    if classes.ndim != 2 or len(classes) != 2 or classes.dtype != np.int64:
        raise DataError(
            f"array 'classes' is {classes.shape} {classes.dtype}; expected (2, C) int64"
        )
    ids, counts = torch.from_numpy(classes.copy())
    memory = like.empty_like().cpu()
    memory.class_ids, memory.count = ids, counts
    place = 0
    for name in memory._shapes:
        if precision == "exact":
            _unpack_exact(memory, name, arrays[name])
            continue
        rows = _rows(memory, name)
        factors = arrays["scale"][place : place + rows] if "scale" in arrays else np.ones(rows)
        place += rows
        _unpack_rounded(memory, name, arrays[name], factors, precision)
    if "scale" in arrays and (arrays["scale"].shape != (place,) or arrays["scale"].dtype != float):
        raise DataError(
            f"array 'scale' is {arrays['scale'].shape} {arrays['scale'].dtype}; "
            f"expected ({place},) float64"
        )
    return memory


# -- precisions ---------------------------------------------------------------------------------


def _pack_exact(memory: PrototypeMemory, name: str) -> NDArray[np.generic]:
    high = _triangle(memory.get_buffer(name), name, memory).cpu().numpy()
    if memory.exact:
        return high.astype(_narrowest(high))
    low = _triangle(memory.get_buffer(f"{name}_low"), name, memory).cpu().numpy()
    return np.stack([high, low]) if low.any() else high[None]


def _narrowest(values: NDArray[np.generic]) -> type[np.signedinteger]:
    largest = int(np.abs(values).max()) if values.size else 0
    return next(kind for kind in _INTEGERS if largest <= np.iinfo(kind).max)


def _unpack_exact(memory: PrototypeMemory, name: str, array: NDArray[np.generic]) -> None:
    shape = _sent_shape(memory, name)
    if memory.exact:
        if array.shape != shape or array.dtype not in _INTEGERS:
            raise DataError(
                f"array '{name}' is {array.shape} {array.dtype}; expected {shape} of integers"
            )
        _set(memory, name, torch.from_numpy(array.astype(np.int64)))
        return
    if array.ndim == 0 or array.shape[1:] != shape or len(array) not in (1, 2):
        raise DataError(f"array '{name}' is {array.shape}; expected (1 or 2, *{shape})")
    if array.dtype != np.float64:
        raise DataError(f"array '{name}' has type {array.dtype}; expected float64")
    halves = torch.from_numpy(array.copy())
    _set(memory, name, halves[0])
    _set(memory, f"{name}_low", halves[1] if len(halves) == 2 else torch.zeros_like(halves[0]))


def _round(
    rows: NDArray[np.float64], precision: Precision
) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """Rows at ``precision`` and the factor that each must be multiplied by."""
    flat = rows.reshape(len(rows), -1)
    if precision == "float32":
        rounded = rows.astype(np.float32)
        if not np.isfinite(rounded).all():
            raise ValueError("a mean exceeds the range of float32; scale the features down")
        return rounded, np.ones(len(rows))
    largest = np.abs(flat).max(axis=1, initial=0.0)
    if precision == "int8":
        scale = np.where(largest > 0, largest / 127, 1.0)
        return np.rint(flat / scale[:, None]).astype(np.int8).reshape(rows.shape), scale
    exponents = np.frexp(largest)[1]
    scale = np.ldexp(1.0, exponents)
    return (flat / scale[:, None]).astype(np.float16).reshape(rows.shape), scale


def _unpack_rounded(
    memory: PrototypeMemory,
    name: str,
    array: NDArray[np.generic],
    factors: NDArray[np.generic],
    precision: Precision,
) -> None:
    shape = _sent_shape(memory, name)
    shape = (1, *shape) if _is_pooled(memory, name) else shape
    if array.shape != shape or array.dtype != np.dtype(precision):
        raise DataError(
            f"array '{name}' is {array.shape} {array.dtype}; expected {shape} {precision}"
        )
    rows = torch.from_numpy(array.astype(np.float64) * factors.astype(np.float64).reshape(-1, 1))
    sums = rows * _weights(memory, name, memory.get_buffer("count"))
    sums = sums[0] if _is_pooled(memory, name) else sums
    if not memory.exact:
        _set(memory, name, sums)
        _set(memory, f"{name}_low", torch.zeros_like(sums))
        return
    unit = memory.step**2 if name == "second" else memory.step
    whole = torch.round(sums / unit)
    if not bool((whole.abs() < 2.0**63).all()):  # also false for NaN
        raise DataError(f"array '{name}' does not fit fixed point with step {memory.step:g}")
    _set(memory, name, whole.to(torch.int64))


# -- shapes -------------------------------------------------------------------------------------


def _is_pooled(memory: PrototypeMemory, name: str) -> bool:
    return name == "second" and memory.level == "shared"


def _is_symmetric(memory: PrototypeMemory, name: str) -> bool:
    return name == "second" and memory.level in ("shared", "full")


def _rows(memory: PrototypeMemory, name: str) -> int:
    return 1 if _is_pooled(memory, name) else len(memory)


def _sent_shape(memory: PrototypeMemory, name: str) -> tuple[int, ...]:
    shape = tuple(len(memory) if n == -1 else n for n in memory._shapes[name])
    if not _is_symmetric(memory, name):
        return shape
    return (*shape[:-2], memory.width * (memory.width + 1) // 2)


def _weights(memory: PrototypeMemory, name: str, counts: Tensor) -> Tensor:
    """``(rows, 1)`` float64: the counts by which sums are divided to become means."""
    if _is_pooled(memory, name):
        return counts.sum().clamp(min=1).to(torch.float64).reshape(1, 1)
    return counts.to(torch.float64)[:, None]


def _triangle(values: Tensor, name: str, memory: PrototypeMemory) -> Tensor:
    """Symmetric matrices ``(..., W, W)`` as their upper triangles ``(..., W (W + 1) / 2)``."""
    if not _is_symmetric(memory, name):
        return values
    rows, columns = torch.triu_indices(memory.width, memory.width)
    return values[..., rows, columns]


def _set(memory: PrototypeMemory, name: str, values: Tensor) -> None:
    """Store values as they were sent; triangles become symmetric matrices again."""
    if _is_symmetric(memory, name.removesuffix("_low")):
        rows, columns = torch.triu_indices(memory.width, memory.width)
        whole = values.new_empty(*values.shape[:-1], memory.width, memory.width)
        whole[..., rows, columns] = values
        whole[..., columns, rows] = values
        values = whole
    setattr(memory, name, values)
