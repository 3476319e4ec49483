"""Samples as they are named on the command line: image files, folders, arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from protocl.data.folder import images_in
from protocl.data.pictures import read_picture
from protocl.errors import DataError

AT_ONCE = 256
"""Samples that are in memory at the same time."""


def batches(
    paths: Sequence[Path], failed: Callable[[DataError], None]
) -> Iterator[tuple[list[str], Any]]:
    """Names and samples, some at a time.

    Args:
        paths: image files, folders of them, and ``.npy`` arrays.
        failed: is told of each file that cannot be read, which is then passed over.

    Raises:
        DataError: a path does not exist, or a folder has no images.
    """
    pictures: list[Path] = []
    for path in paths:
        if path.suffix == ".npy":
            yield from _arrays(path)
        else:
            pictures += _pictures(path)
    for start in range(0, len(pictures), AT_ONCE):
        names, read = [], []
        for file in pictures[start : start + AT_ONCE]:
            try:
                read.append(read_picture(file))
                names.append(_shown(file))
            except DataError as error:
                failed(error)
        if read:
            yield names, read


def _shown(file: Path) -> str:
    """A path that can be printed: bytes that are no UTF-8 as question marks."""
    return str(file).encode("utf-8", "replace").decode()


def _pictures(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"{path} does not exist")
        return [path]
    found = images_in(path)
    if not found:
        raise DataError(f"{path} holds no images")
    return found


def _arrays(path: Path) -> Iterator[tuple[list[str], Any]]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an array: {error}") from error
    if not array.ndim:
        raise DataError(f"{path} holds a single number: expected samples (N, ...)")
    for start in range(0, len(array), AT_ONCE):
        part = np.array(array[start : start + AT_ONCE])
        yield [f"{path}[{start + i}]" for i in range(len(part))], part
