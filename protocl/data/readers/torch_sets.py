"""Any data set of PyTorch whose items are ``(x, y, ...)``, as arrays in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from protocl.data.arrays import ArrayData
from protocl.data.config import BenchmarkConfig
from protocl.data.labels import label_array
from protocl.data.pictures import pixels_of, read_picture
from protocl.data.readers.arrays import Named, of_parts
from protocl.errors import DataError
from protocl.io.progress import progress_bar


def from_torch(train: Any, test: Any | None, config: BenchmarkConfig) -> ArrayData:
    """A data set for training and one for the test, or one that is shared out.

    Args:
        train: items ``(x, y, ...)``; what comes after the label is left aside. ``x`` is a PIL
            picture, an array or a tensor: an image (``uint8``, or floating point in [0, 1]) or
            features. ``y`` is a number, a text, or a tensor of one number.
        test: the same for the test; None for a share ``config.test`` of each class.
        config: ``name``, ``test``, ``test_seed`` and ``image_size`` are read.

    Raises:
        ConfigError: nothing says which samples are for the test.
        DataError: items are of another kind, or differ in shape.
    """
    parts = gathered(train, test, config.image_size)
    _, _, _, labels = next(iter(parts.values()))
    return of_parts(parts, config, "the data set", names_of(train, labels))


def gathered(train: Any, test: Any | None, image_size: int | None = None) -> dict[str, Named]:
    """Samples and labels of data sets by part, as :func:`.of_parts` takes them.

    Arguments and errors are those of :func:`from_torch`.
    """
    sets = {"all": train} if test is None else {"train": train, "test": test}
    return {
        part: _gathered(data, f"the {part} data set", image_size) for part, data in sets.items()
    }


def names_of(data: Any, labels: np.ndarray) -> list[str] | None:
    """The names of classes that a data set says, or what it is a part of; None without any.

    Args:
        data: ``classes`` (torchvision), or ``categories``, of itself or of what it wraps.
        labels: its labels; names that do not reach their numbers are none of theirs.
    """
    for attribute in ("classes", "categories"):
        names = getattr(data, attribute, None)
        if isinstance(names, Sequence) and not isinstance(names, str) and len(names):
            texts = [name if isinstance(name, str) else str(name) for name in names]
            fits = labels.dtype.kind == "U" or int(labels.max(initial=0)) < len(texts)
            return texts if fits else None
    inner = getattr(data, "dataset", None)
    return None if inner is None else names_of(inner, labels)


def _gathered(data: Any, what: str, image_size: int | None) -> Named:
    x: list[np.ndarray] = []
    y: list[Any] = []
    total = len(data) if hasattr(data, "__len__") else None
    with progress_bar(f"reading {what}", total or 0) as bar:
        for row, item in enumerate(_items(data, total)):
            sample, label = _cut(item, what, row)
            x.append(_sample(sample, image_size))
            y.append(label)
            bar.update()
    if not x:
        raise DataError(f"{what} is empty")
    return f"{what}: samples", _stacked(x, what), f"{what}: labels", label_array(y)


def _items(data: Any, total: int | None) -> Iterable[Any]:
    """Items in order; a data set without a length is one that is iterated."""
    return iter(data) if total is None else (data[row] for row in range(total))


def _cut(item: Any, what: str, row: int) -> tuple[Any, Any]:
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise DataError(
            f"{what}: item {row} is a {type(item).__name__}; expected (x, y), a sample and its "
            "class"
        )
    return item[0], item[1]


def _sample(sample: Any, image_size: int | None) -> np.ndarray:
    """A picture as ``(3, H, W)`` bytes, anything else as an array."""
    if hasattr(sample, "convert"):  # PIL's
        return pixels_of(read_picture(sample), image_size).numpy()
    array = sample.detach().cpu().numpy() if isinstance(sample, Tensor) else np.asarray(sample)
    if array.dtype.kind in "iub" and array.ndim == 1:
        return array.astype(np.float32)  # counts are features
    return array


def _stacked(x: list[np.ndarray], what: str) -> np.ndarray:
    shapes = {array.shape for array in x}
    if len(shapes) > 1:
        first, second, *_ = sorted(shapes)
        raise DataError(
            f"{what}: samples are {first} and {second}; give all one shape, pictures by "
            "benchmark.image_size"
        )
    return np.stack(x)
