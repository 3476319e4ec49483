"""Labels as users keep them, as class ids with names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protocl.errors import DataError

logger = logging.getLogger(__name__)

_SPARSE = 10
"""Numbers that go up to so many times the number of classes are no ids but keys, if above 1,000."""
_NUMPY_HAS = (torch.float16, torch.float32, torch.float64)
_ADVICE = "number them from 0 on, as np.unique(labels, return_inverse=True)[1] does"


def to_class_ids(
    parts: Mapping[str, np.ndarray], names: Sequence[str] | None = None
) -> tuple[list[Tensor], list[str]]:
    """Class ids of several arrays of labels, and the name of each class.

    Numbers are ids: integers, truth values, whole floating-point numbers. Texts are names, whose
    ids are their places in ``names``, or else in their sorted order. So are numbers without
    ``names`` that go far beyond how many there are, such as 1,000,000 for three classes, which is
    logged.

    Args:
        parts: arrays ``(N,)`` or ``(N, 1)``, by what they are called in messages.
        names: one name per class id.

    Returns:
        Class ids ``(N,)`` int64 of each part, and the names.

    Raises:
        DataError: another shape, numbers that are negative or not whole, a text that is not among
            ``names``, or texts in one part and numbers in another.
    """
    arrays = [numbers_or_texts(array, what) for what, array in parts.items()]
    texts = {array.dtype.kind == "U" for array in arrays}
    if len(texts) > 1:
        raise DataError(f"{' and '.join(parts)}: one holds texts, another numbers; give one kind")
    distinct = np.unique(np.concatenate(arrays))
    if texts == {True}:
        return _by_name(dict(zip(parts, arrays, strict=True)), names or distinct.tolist())
    highest = int(distinct[-1]) if len(distinct) else -1
    if names is None and highest >= max(1000, _SPARSE * len(distinct)):
        logger.warning(
            "%s: labels up to %d for %d classes are taken as their names; ids are 0..%d in order",
            next(iter(parts)), highest, len(distinct), len(distinct) - 1,
        )  # fmt: skip
        ranks = [np.searchsorted(distinct, array) for array in arrays]
        return [torch.from_numpy(rank) for rank in ranks], [str(label) for label in distinct]
    named = [str(label) for label in range(highest + 1)] if names is None else list(names)
    if highest >= len(named):
        raise DataError(
            f"{next(iter(parts))}: labels lie in {int(distinct[0])}..{highest}; expected "
            f"0..{len(named) - 1}, one for each of the {len(named)} names"
        )
    return [torch.from_numpy(array.astype(np.int64)) for array in arrays], named


def label_array(labels: Any) -> np.ndarray:
    """Labels as a program holds them, as :func:`to_class_ids` takes them.

    Args:
        labels: an array, a tensor, a column of a data frame, or a list of numbers, tensors or
            texts.

    >>> label_array(["cat", "dog"]).dtype.kind, label_array(torch.tensor([1, 0])).tolist()
    ('U', [1, 0])
    """
    if isinstance(labels, Tensor):
        return as_array(labels)
    array = np.asarray(labels)
    if array.dtype.kind == "U" and isinstance(labels, list):  # in which NumPy writes None as text
        array = np.array(labels, dtype=object)
    if array.dtype.kind not in "OT":
        return array
    members = array.tolist()
    texts = [isinstance(member, str) for member in members]
    if all(texts):
        return np.array(members, dtype=str)
    if any(texts) and any(map(_is_absent, members)):
        return array  # which is refused with its row
    try:
        return np.array([np.asarray(member).item() for member in members])
    except (ValueError, TypeError):
        return array  # which is refused by its type


def as_array(tensor: Tensor) -> np.ndarray:
    """A tensor as an array, in float32 where NumPy has no such type of floating-point numbers."""
    tensor = tensor.detach().cpu()
    known = not tensor.is_floating_point() or tensor.dtype in _NUMPY_HAS
    return (tensor if known else tensor.float()).numpy()


def numbers_or_texts(array: np.ndarray, what: str) -> np.ndarray:
    """Labels ``(N,)``: integers of at least 0, or texts.

    Raises:
        DataError: as :func:`to_class_ids`; it names the row.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        hint = "; of one-hot rows give labels.argmax(1)" if array.ndim == 2 else ""
        raise DataError(f"{what} has shape {array.shape}; expected one label each, (N,){hint}")
    if array.dtype.kind == "O":
        _refuse_absent(array, what)
    if array.dtype.kind == "S":
        return _decoded(array, what)
    if array.dtype.kind == "U":
        return array
    if array.dtype.kind == "b":
        return array.astype(np.int64)
    if array.dtype.kind == "f":
        array = _whole(array, what)
    if array.dtype.kind not in "iu":
        raise DataError(f"{what} is {array.dtype}; expected whole numbers or texts, or {_ADVICE}")
    if len(array) and array.min() < 0:
        raise DataError(
            f"{what} holds the label {array.min()}; expected labels of at least 0: leave out "
            f"samples without a label, or {_ADVICE}"
        )
    return array


def _refuse_absent(array: np.ndarray, what: str) -> None:
    for row, label in enumerate(array.tolist()):
        if _is_absent(label):
            raise DataError(
                f"{what}: row {row} is {label}; expected a label for each sample: leave out "
                "samples without one"
            )


def _is_absent(label: Any) -> bool:
    """Whether a label is None, NaN, or what pandas has in their place, which equals nothing."""
    return label is None or (not isinstance(label, str) and str(label) in ("nan", "NaT", "<NA>"))


def _decoded(array: np.ndarray, what: str) -> np.ndarray:
    try:
        return np.char.decode(array, "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{what} holds bytes that are not UTF-8 ({error}); {_ADVICE}") from error


def _whole(array: np.ndarray, what: str) -> np.ndarray:
    array = array.astype(np.float64)  # which skips whole numbers beyond 2**53
    wrong = ~(np.isfinite(array) & (array == np.floor(array)) & (np.abs(array) < 2**53))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"{what}: row {row} is {array[row]}; expected whole numbers, or {_ADVICE}")
    return array.astype(np.int64)


def _by_name(
    parts: Mapping[str, np.ndarray], names: Sequence[str]
) -> tuple[list[Tensor], list[str]]:
    ids = {name: number for number, name in enumerate(names)}
    for what, array in parts.items():
        unknown = sorted(set(array.tolist()) - set(ids))
        if unknown:
            raise DataError(
                f"{what} holds the label '{unknown[0]}', which is not among the names: "
                f"{', '.join(names)}"
            )
    numbers = [[ids[text] for text in array.tolist()] for array in parts.values()]
    return [torch.tensor(number, dtype=torch.int64) for number in numbers], list(names)
