"""Prototype memories in ``.safetensors`` files."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from protocl.batch import Level
from protocl.errors import DataError, FingerprintError
from protocl.maps import FeatureMap
from protocl.maps import feature_map as build_map
from protocl.memory import PrototypeMemory
from protocl.storage import atomic_path

FORMAT = "protocl-memory"
FORMAT_VERSION = "1"


def save_memory(memory: PrototypeMemory, path: str | os.PathLike[str]) -> None:
    """Write ``memory`` to ``path`` with its description in the header."""
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, **memory.describe()}
    if memory.fingerprint is not None:
        header["fingerprint"] = memory.fingerprint
    tensors = {name: buffer.contiguous() for name, buffer in memory.named_buffers(recurse=False)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def load_memory(
    path: str | os.PathLike[str],
    *,
    fingerprint: str | None = None,
    feature_map: FeatureMap | None = None,
) -> PrototypeMemory:
    """Read a memory; see :meth:`protocl.PrototypeMemory.load`."""
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
    return memory_from(header, tensors, feature_map=feature_map)


def memory_from(
    header: dict[str, str], tensors: dict[str, Tensor], *, feature_map: FeatureMap | None = None
) -> PrototypeMemory:
    """A memory from its description and its arrays, after checking that they fit.

    Raises:
        DataError: an array is missing, has the wrong shape or type, or holds impossible values.
    """
    feature_map = feature_map or build_map(header["feature_map"])
    if feature_map.spec != header["feature_map"]:
        raise DataError(
            f"the statistics were summed under '{header['feature_map']}', not '{feature_map.spec}'"
        )
    level: Level = header["level"]  # type: ignore[assignment]
    memory = PrototypeMemory(
        int(header["feature_dim"]), level, feature_map=feature_map,
        raw_means=header["raw_means"] == "True", exact=header["exact"] == "True",
        step=float(header["step"]), fingerprint=header.get("fingerprint"),
    )  # fmt: skip
    for name, buffer in memory.named_buffers(recurse=False):
        setattr(
            memory,
            name,
            _checked(
                name, tensors, buffer, per_class=not memory._is_shared(name.removesuffix("_low"))
            ),
        )
    ids, counts = memory.get_buffer("class_ids"), memory.get_buffer("count")
    if bool((ids[1:] <= ids[:-1]).any()) or bool((ids[:1] < 0).any()) or bool((counts < 1).any()):
        raise DataError("the statistics hold class ids out of order, negative, or without samples")
    return memory


def _checked(name: str, tensors: dict[str, Tensor], expected: Tensor, *, per_class: bool) -> Tensor:
    if name not in tensors:
        raise DataError(f"the statistics lack the array '{name}'")
    array = tensors[name]
    shape = (len(tensors["class_ids"]), *expected.shape[1:]) if per_class else tuple(expected.shape)
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
