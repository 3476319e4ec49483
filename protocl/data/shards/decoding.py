"""One sample of a shard as a backbone takes it, and its label."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from protocl.data.pictures import decoded, pixels_of, read_picture
from protocl.data.readers.values import Label, label_of
from protocl.data.samples import to_samples
from protocl.errors import DataError

NPY = b"\x93NUMPY"


@dataclass(frozen=True)
class Wanted:
    """What every sample has to be.

    Attributes:
        shape: ``(C, H, W)``, to which pictures are resized, or ``(D,)``; None for whatever comes.
        names: of the classes, which whole numbers stand for from 0 on; None where labels are
            what they are.
    """

    shape: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None


def decoded_sample(sample: Any, what: str, wanted: Wanted) -> Tensor:
    """A sample ``(C, H, W)`` uint8 or float32, or ``(D,)`` float32.

    Args:
        sample: content of an image file or of one by NumPy; a path or picture; numbers.
        what: names it in messages.
        wanted: its shape.

    Raises:
        DataError: it is damaged, or of another kind, type or shape.
    """
    if sample is None:
        raise DataError(f"{what} is missing; expected a picture or numbers")
    picture = _picture(sample, what)
    if picture is None:
        return _numbers(sample, what, wanted.shape)
    if wanted.shape is not None and len(wanted.shape) != 3:
        raise DataError(
            f"{what} is a picture; expected {wanted.shape[0]} numbers, as the first sample has"
        )
    channels, size = (3, None) if wanted.shape is None else (wanted.shape[0], wanted.shape[1:])
    return pixels_of(picture, size, channels)


def _picture(sample: Any, what: str) -> Any:
    """The picture in RGB that a sample is, or None where it is numbers."""
    if isinstance(sample, bytes):
        if sample.startswith(NPY):
            return None
        sample = decoded(sample, what)
    if not (isinstance(sample, str | Path) or hasattr(sample, "convert")):
        return None
    try:
        return read_picture(sample)
    except DataError as error:
        raise DataError(f"{what}: {error}") from error


def _numbers(sample: Any, what: str, shape: Sequence[int] | None) -> Tensor:
    array = _array(sample, what)
    if array.ndim not in (1, 2, 3):
        raise DataError(f"{what} has shape {array.shape}; expected features (D,) or an image")
    if not array.size:
        raise DataError(f"{what} has shape {array.shape} and holds no numbers")
    tensor = to_samples(array[None], what)[0]
    if shape is not None and tuple(tensor.shape) != tuple(shape):
        raise DataError(
            f"{what} has shape {tuple(tensor.shape)}; expected {tuple(shape)}, as the first sample"
        )
    return tensor


def _array(sample: Any, what: str) -> np.ndarray:
    try:
        if isinstance(sample, bytes):
            array = np.load(io.BytesIO(sample), allow_pickle=False)
        else:
            array = sample.numpy() if isinstance(sample, Tensor) else np.asarray(sample)
    except Exception as error:  # NumPy raises whatever damaged content leads it to
        raise DataError(f"{what} cannot be read as an array: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        kind = getattr(array, "dtype", type(array).__name__)
        raise DataError(f"{what} is {kind}; expected numbers, or an image file")
    return array


def read_label(value: Any, what: str, wanted: Wanted) -> Label:
    """The class of a sample: a whole number from 0 on, or a name.

    Raises:
        DataError: there is none, it is no class, or not among those declared.
    """
    label = label_of(value, what)
    if isinstance(label, int) and label < 0:
        raise DataError(
            f"{what} has the label {label}; expected one of at least 0: leave out samples without "
            "a label"
        )
    if wanted.names is None:
        return label
    if isinstance(label, int) and label < len(wanted.names):
        return wanted.names[label]
    if label not in wanted.names:
        raise DataError(
            f"{what} has the label '{label}', which is none of the {len(wanted.names)} classes "
            "that were given"
        )
    return label


def stacked(rows: np.ndarray, what: str, wanted: Wanted) -> Tensor:
    """Many vectors ``(N, D)`` at once, as :func:`decoded_sample` gives each.

    Raises:
        DataError: one is not as wanted; another call for each tells which.
    """
    x = to_samples(rows, what)
    if wanted.shape is not None and tuple(x.shape[1:]) != tuple(wanted.shape):
        raise DataError(f"{what}: rows of {tuple(x.shape[1:])}; expected {tuple(wanted.shape)}")
    return x
