"""Arrays as users keep them, as samples of a backbone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from protocl.errors import DataError, PrecisionWarning

_FEW_BITS = 2.0**-18
"""A spread so small beside the values leaves a float32 (24 bits) six bits for it, or fewer."""


def to_samples(array: np.ndarray, what: str) -> Tensor:
    """An array of images or features as a tensor ``(N, C, H, W)`` or ``(N, D)``.

    Args:
        array: see :func:`protocl.data.npz.load_npz` for the shapes and types that are understood.
        what: where the array comes from, for messages.

    Raises:
        DataError: another shape or type, numbers that are not finite in float32, or floating-point
            pixels outside [0, 1].
    """
    if array.ndim == 2:
        return torch.from_numpy(features_of(array, what))
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise DataError(
            f"{what} is {array.dtype}; expected uint8 or floating point: give images of "
            "0..255 as x.astype(np.uint8)"
        )
    if array.dtype != np.uint8:
        array = _finite(array, what)
    tensor = torch.from_numpy(array)
    if tensor.ndim == 3:
        tensor = tensor.unsqueeze(1)
    elif tensor.ndim == 4 and tensor.shape[-1] in (1, 3):
        tensor = tensor.permute(0, 3, 1, 2)
    elif tensor.ndim != 4 or tensor.shape[1] not in (1, 3):
        raise DataError(
            f"{what} has shape {tuple(array.shape)}; expected (N, H, W), (N, H, W, C) or "
            "(N, C, H, W) with 1 or 3 channels, or features (N, D)"
        )
    if tensor.is_floating_point() and tensor.numel():
        low, high = (float(v) for v in tensor.aminmax())
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"{what} has values in {low:g}..{high:g}; expected floating-point pixels in [0, 1] "
                "(or uint8 in 0..255)"
            )
    return tensor.contiguous()


def features_of(array: np.ndarray, what: str, names: Sequence[str] = ()) -> np.ndarray:
    """Features ``(N, D)`` of any real type, truth values included, as float32.

    Args:
        array: features.
        what: where they come from, for messages.
        names: of the ``D`` columns, which are numbered without them.

    Raises:
        DataError: they are no real numbers, or not finite in float32.

    Warns:
        PrecisionWarning: float32 cuts a column whose standard deviation is below 2^-18 of its
            largest magnitude: what tells its values apart is lost.
    """
    if array.dtype.kind not in "buif":
        raise DataError(
            f"{what} is {array.dtype}; expected numbers: give features as x.astype(np.float32)"
        )
    single = _finite(array, what) if array.dtype.kind == "f" else array.astype(np.float32)
    if len(array) and array.dtype.kind != "b" and array.dtype.itemsize > 2:
        _warn_of_cut_columns(array, single, what, names)
    return single


def _warn_of_cut_columns(
    array: np.ndarray, single: np.ndarray, what: str, names: Sequence[str]
) -> None:
    cut = np.flatnonzero((single != array).any(0))
    wide = array[:, cut].astype(np.float64)
    narrow = wide.std(0) < _FEW_BITS * np.abs(wide).max(0)
    columns = cut[narrow & (wide.min(0) < wide.max(0))]
    if len(columns):
        called = [f"'{names[c]}'" if names else str(c) for c in columns[:5]]
        shown = ", ".join(called) + (", ..." if len(columns) > 5 else "")
        warnings.warn(
            f"{what}: column(s) {shown} vary by less than 2^-18 of their largest value, which "
            "float32 cuts away; subtract an offset or standardise",
            PrecisionWarning,
            stacklevel=3,
        )


def _finite(array: np.ndarray, what: str) -> np.ndarray:
    """The array as float32, in which no number may be missing or too large."""
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    wrong = ~np.isfinite(single)
    if wrong.any():
        place = np.unravel_index(int(wrong.argmax()), array.shape)
        rows = int(wrong.reshape(len(array), -1).any(1).sum())
        raise DataError(
            f"{what}: row {place[0]} holds {array[place]} ({rows} of {len(array)} rows have such "
            "numbers); expected finite numbers below 3.4e38: leave these rows out or fill them in"
        )
    return single
