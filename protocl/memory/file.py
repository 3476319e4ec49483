"""Statistics in ``.safetensors`` files: arrays, and a description in the header.

The arrays are those of :meth:`protocl.PrototypeMemory.parts`. Halves that are zero are left out.
Version 1 wrote all matrices whole, and all halves. Version 2 has one word a number in fixed point;
what needs no second word is still written as version 2.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from protocl.errors import DataError, FingerprintError
from protocl.io.atomic import atomic_path

if TYPE_CHECKING:
    from protocl.memory.memory import PrototypeMemory

FORMAT = "protocl-memory"
FORMAT_VERSION = "2"
TWO_WORDS = "3"
"""Version of files that hold upper words, of which earlier readers would take the lower alone."""
READ_VERSIONS = ("1", FORMAT_VERSION, TWO_WORDS)
CHECKSUM = "checksum"
KEYS = frozenset({
    "format", "format_version", "feature_dim", "level", "feature_map", "raw_means", "exact", "step",
    "fingerprint",
})  # fmt: skip
"""Keys of a header written before there were checksums."""


def description_of(memory: PrototypeMemory) -> dict[str, str]:
    """What a header says of a memory, for :meth:`protocl.PrototypeMemory.described`."""
    return {name: text for name, text in memory.get_extra_state().items() if text is not None}


def arrays_of(memory: PrototypeMemory) -> dict[str, Tensor]:
    """What a file holds of a memory, to the last bit."""
    arrays = memory.parts()
    unused = [n for n, a in arrays.items() if n.endswith("_low") and not a.view(torch.int64).any()]
    return {name: array for name, array in arrays.items() if name not in unused}


def write(
    path: str | os.PathLike[str],
    description: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    kind: str = FORMAT,
) -> None:
    """Write arrays and their description to ``path``, whole or not at all.

    Args:
        path: the file.
        description: of the arrays, texts by name.
        tensors: by name.
        kind: what they are, which :func:`read` is to be told.
    """
    header = sealed(description, tensors, kind)
    with atomic_path(path) as temporary:
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, metadata=header)
        order_header(temporary)


def sealed(
    description: Mapping[str, str], tensors: Mapping[str, Tensor], kind: str = FORMAT
) -> dict[str, str]:
    """The header of a file of these arrays, its checksum included."""
    version = TWO_WORDS if any(name.endswith("second_high") for name in tensors) else FORMAT_VERSION
    header = {"format": kind, "format_version": version, **description}
    return header | {CHECKSUM: checksum(header, tensors)}


def order_header(path: Path) -> None:
    """Sort the description in a ``.safetensors`` file, which the library writes in random order.

    Equal contents are then equal bytes.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            raise ValueError(f"{path}: the sorted header takes {len(text)} bytes of {size}")
        file.seek(8)
        file.write(text.ljust(size))


def read(
    path: str | os.PathLike[str], fingerprint: str | None = None, kind: str = FORMAT
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The description and the arrays in ``path``.

    Args:
        path: the file.
        fingerprint: of the backbone at hand.
        kind: what the arrays are.

    Raises:
        DataError: the file is absent, damaged, of another kind or of an unknown format version.
        FingerprintError: the statistics were built from another backbone.
    """
    header, tensors = _read(Path(path))
    if header.get("format") != kind:
        raise DataError(f"{path} is a safetensors file but not a {kind.replace('-', ' ')}")
    version = header.get("format_version", "none")
    if version not in READ_VERSIONS:
        raise DataError(
            f"{path} has format version {version}, this protocl reads "
            f"{', '.join(READ_VERSIONS)}; upgrade protocl, or restore the file if it is damaged"
        )
    _require_whole(Path(path), header, tensors)
    saved = header.get("fingerprint")
    if fingerprint is not None and saved is not None and saved != fingerprint:
        raise FingerprintError(
            f"{path} was built from backbone {saved}, not from {fingerprint}; "
            "extract the features with the backbone that built it, or build a new memory"
        )
    return header, tensors


def identity(path: Path) -> str:
    """What tells the statistics in a file from others: their checksum.

    Raises:
        DataError: the file is absent or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get(CHECKSUM)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}; restore it from a copy") from error
    if found is not None:
        return str(found)
    with path.open("rb") as whole:  # the first files had no checksum
        return hashlib.file_digest(whole, "sha256").hexdigest()


def checksum(description: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over a description and arrays with their names, types and shapes."""
    digest = hashlib.sha256(json.dumps(sorted(description.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _require_whole(path: Path, header: dict[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a file of which a bit has changed; the first ones of version 1 have no checksum."""
    found = header.pop(CHECKSUM, None)
    unknown = header.keys() - KEYS
    if found is None and unknown:
        raise DataError(f"{path} is damaged: its header has the unknown key {unknown.pop()!r}")
    if found is None and header["format_version"] != "1":
        raise DataError(f"{path} is damaged: its header has no checksum")
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
