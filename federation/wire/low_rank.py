"""Second moments of low rank in messages: ``r (W + 1)`` numbers in place of ``W (W + 1) / 2``.

In place of ``second`` a message holds ``factor`` ``(r, W)`` and ``rest`` ``(1,)``, float32: leading
eigenvectors of the scatter within the client's classes, each times the root of its eigenvalue, and
the mean of what was dropped. Class sums are in the message anyway, and give the rest of the moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocl.errors import DataError
from protocl.federation.wire.statistics import Arrays, PackedForm
from protocl.memory.estimates.low_rank import LowRank

FACTORED = frozenset({"factor", "rest"})
"""Arrays of a message that stand for its second moment."""


def factor_arrays(moment: LowRank) -> Arrays:
    """The arrays that stand for a scatter of low rank."""
    factor, rest = moment.factor.cpu().numpy(), moment.rest.cpu().numpy()
    return {"factor": factor.astype(np.float32), "rest": rest.astype(np.float32)[None]}


def with_moment(form: PackedForm, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """Arrays of a message with ``second`` in place of the factor that it has.

    Args:
        form: what the federation merges.
        arrays: from a sender that may be faulty or hostile.

    Raises:
        DataError: the federation merges exact moments, or an array is missing or does not fit.
    """
    if not form.empty.estimated or form.level != "shared":
        raise DataError("array 'factor': this federation merges exact second moments")
    others = {name: array for name, array in arrays.items() if name not in FACTORED}
    _require(form, arrays)
    counts = arrays["classes"][1].astype(np.float64)
    sums = arrays["sum"].sum(axis=0)
    with np.errstate(all="ignore"):  # what is not finite is refused with the values
        whole = (sums.T / counts) @ sums
        factor = arrays["factor"].astype(np.float64)
        whole += factor.T @ factor
        whole += np.eye(form.width) * float(arrays["rest"][0])
    return others | {"second": whole[np.triu_indices(form.width)][None]}


def _require(form: PackedForm, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuse arrays of other shapes and types than :func:`factor_arrays` and the codec make."""
    shapes = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
    classes, width = arrays.get("classes"), form.width
    number = classes.shape[1] if classes is not None and classes.ndim == 2 else -1
    sums, factor = arrays.get("sum"), arrays.get("factor")
    if not (
        classes is not None and classes.shape == (2, number) and classes.dtype == np.int64
        and sums is not None and sums.ndim == 3 and sums.shape[1:] == (number, width)
        and sums.dtype == np.float64
        and factor is not None and factor.ndim == 2 and factor.shape[1] == width
        and len(factor) <= width and factor.dtype == np.float32
        and shapes.get("rest") == ((1,), "float32") and arrays["rest"][0] >= 0
    ):  # fmt: skip
        raise DataError(
            f"arrays are {shapes}: expected classes (2, C) int64, sum (1 or 2, C, {width}) "
            f"float64, factor (r, {width}) float32 and rest (1,) float32 of 0 or more"
        )
