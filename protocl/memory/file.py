"""Statistics in ``.safetensors`` files: arrays, and a description in the header."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from protocl.errors import DataError, FingerprintError
from protocl.io.atomic import atomic_path

FORMAT = "protocl-memory"
FORMAT_VERSION = "1"
CHECKSUM = "checksum"
KEYS = frozenset({
    "format", "format_version", "feature_dim", "level", "feature_map", "raw_means", "exact", "step",
    "fingerprint",
})  # fmt: skip
"""Keys of a header written before there were checksums."""


def write(
    path: str | os.PathLike[str], description: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> None:
    """Write arrays and their description to ``path``, whole or not at all."""
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, **description}
    header[CHECKSUM] = checksum(header, tensors)
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
    version = header.get("format_version", "none")
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {version}, this protocl reads {FORMAT_VERSION}; "
            "upgrade protocl, or restore the file if it is damaged"
        )
    _require_whole(Path(path), header, tensors)
    saved = header.get("fingerprint")
    if fingerprint is not None and saved is not None and saved != fingerprint:
        raise FingerprintError(
            f"{path} was built from backbone {saved}, not from {fingerprint}; "
            "extract the features with the backbone that built it, or build a new memory"
        )
    return header, tensors


def require_array(
    name: str, tensors: Mapping[str, Tensor], expected: Tensor, *, per_class: bool
) -> None:
    """Refuse the array ``name`` unless it is like ``expected`` but for its number of classes.

    Raises:
        DataError: it is missing, has another shape or type, or holds NaN or infinite values.
    """
    if name not in tensors:
        raise DataError(f"the statistics lack the array '{name}'")
    array, ids = tensors[name], tensors["class_ids"]
    classes = ids.shape[0] if ids.ndim else 0
    shape = (classes, *expected.shape[1:]) if per_class else tuple(expected.shape)
    if tuple(array.shape) != shape or array.dtype != expected.dtype:
        raise DataError(
            f"array '{name}' is {tuple(array.shape)} {array.dtype}, "
            f"expected {shape} {expected.dtype}"
        )
    if array.is_floating_point() and not bool(torch.isfinite(array).all()):
        raise DataError(f"array '{name}' holds NaN or infinite values")


def checksum(description: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over a description and arrays with their names, types and shapes."""
    digest = hashlib.sha256(json.dumps(sorted(description.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _require_whole(path: Path, header: dict[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a file of which a bit has changed; files of before there were checksums have none."""
    found = header.pop(CHECKSUM, None)
    unknown = header.keys() - KEYS
    if found is None and unknown:
        raise DataError(f"{path} is damaged: its header has the unknown key {unknown.pop()!r}")
    if found is not None and found != checksum(header, tensors):
        raise DataError(
            f"{path} is damaged: its checksum is not that of its contents; "
            "restore it from a copy, or build the memory again"
        )


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} is not a readable memory file: {error}") from error
