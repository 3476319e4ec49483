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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocl.federation.wire.statistics import Arrays, Packed, Precision, extremes, narrowest
from protocl.memory import PrototypeMemory

ERROR_BOUNDS: dict[str, float] = {
    "exact": 0.0,
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "int8": 1 / 254,
}
"""Largest error of an entry of a mean, as a share of the largest magnitude in its row."""


def pack(memory: PrototypeMemory, precision: Precision = "exact") -> Arrays:
    """The arrays that stand for ``memory``.

    Raises:
        ValueError: ``precision`` is unknown, or float32 cannot hold a mean.
    """
    if precision not in ERROR_BOUNDS:
        raise ValueError(f"precision='{precision}': expected one of {', '.join(ERROR_BOUNDS)}")
    ids, counts = memory.class_ids, memory.count
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


def pack_exactly(memory: PrototypeMemory) -> Packed:
    """All that ``memory`` holds, in arrays of its own."""
    arrays = pack(memory)
    ids, counts = arrays.pop("classes")
    # In floating point what was packed may be the memory's own tensors.
    own = arrays if memory.exact else {name: array.copy() for name, array in arrays.items()}
    return Packed.measured(ids, counts, own)


# -- precisions ---------------------------------------------------------------------------------


def _pack_exact(memory: PrototypeMemory, name: str) -> NDArray[np.generic]:
    high = _triangle(memory._buffer(name), name, memory).cpu().numpy()
    if memory.exact:
        return high.astype(narrowest(*map(int, extremes(high))))
    low = _triangle(memory._buffer(f"{name}_low"), name, memory).cpu().numpy()
    return np.stack([high, low]) if low.any() else high[None]


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


# -- shapes -------------------------------------------------------------------------------------


def _is_pooled(memory: PrototypeMemory, name: str) -> bool:
    return name == "second" and memory.level == "shared"


def _is_symmetric(memory: PrototypeMemory, name: str) -> bool:
    return name == "second" and memory.level in ("shared", "full")


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
