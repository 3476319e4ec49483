"""Statistics in ``.safetensors`` files: arrays, and a description in the header."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from protocl.errors import DataError, FingerprintError
from protocl.storage import atomic_path

FORMAT = "protocl-memory"
FORMAT_VERSION = "1"


def write(
    path: str | os.PathLike[str], description: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> None:
    """Write arrays and their description to ``path``, whole or not at all."""
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, **description}
    with atomic_path(path) as temporary:
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, metadata=header)


def read(
    path: str | os.PathLike[str], fingerprint: str | None = None
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The description and the arrays in ``path``.

    Args:
        path: the file.
        fingerprint: of the backbone at hand.

    Raises:
        DataError: the file is absent, damaged, of another kind or of an unknown format version.
        FingerprintError: the statistics were built from another backbone.
    """
    header, tensors = _read(Path(path))
    if header.get("format") != FORMAT:
        raise DataError(f"{path} is a safetensors file but not a prototype memory")
    if header["format_version"] != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {header['format_version']}, this protocl reads "
            f"{FORMAT_VERSION}; upgrade protocl"
        )
    saved = header.get("fingerprint")
    if fingerprint is not None and saved is not None and saved != fingerprint:
        raise FingerprintError(
            f"{path} was built from backbone {saved}, not from {fingerprint}; "
            "extract the features with the backbone that built it, or build a new memory"
        )
    return header, tensors


def checked(
    name: str, tensors: Mapping[str, Tensor], expected: Tensor, *, per_class: bool
) -> Tensor:
    """The array ``name``, if it is like ``expected`` but for its number of classes.

    Raises:
        DataError: it is missing, has another shape or type, or holds NaN or infinite values.
    """
    if name not in tensors:
        raise DataError(f"the statistics lack the array '{name}'")
    array = tensors[name]
    classes = len(tensors["class_ids"])
    shape = (classes, *expected.shape[1:]) if per_class else tuple(expected.shape)
    if tuple(array.shape) != shape or array.dtype != expected.dtype:
        raise DataError(
            f"array '{name}' is {tuple(array.shape)} {array.dtype}, "
            f"expected {shape} {expected.dtype}"
        )
    if array.is_floating_point() and not bool(torch.isfinite(array).all()):
        raise DataError(f"array '{name}' holds NaN or infinite values")
    return array


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a readable memory file: {error}") from error
