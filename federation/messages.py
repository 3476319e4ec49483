"""Memories in Flower messages, and the checks of everything that comes in.

A message holds one or more *contributions* of a client (the newest, and those not yet
acknowledged), or the server's merged memory. Each is an ``ArrayRecord`` of at most five arrays
(:mod:`protocl.federation.packing`) and a ``ConfigRecord`` that says what they are.
"""

from __future__ import annotations

import ast
import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord
from numpy.typing import NDArray

from protocl.errors import DataError, ProtoclError
from protocl.federation.packing import ERROR_BOUNDS, Arrays, Precision, pack, unpack
from protocl.memory import PrototypeMemory

FORMAT = "protocl-memory"
_LONGEST_CLAIM = 10_000  # characters of an array's header; numpy's own limit
VERSION = 1

Kind = Literal["delta", "full", "merged"]
Reason = Literal[
    "format", "size", "fingerprint", "mismatch", "shape", "values", "bounds", "sequence", "names",
    "forgotten", "overflow", "screened",
]  # fmt: skip


class RejectedError(ProtoclError, ValueError):
    """A message that must not be merged.

    Attributes:
        reason: one word to count by.
    """

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason: Reason = reason


@dataclass(frozen=True)
class Limits:
    """What a contribution may at most claim; a message beyond it is rejected.

    Attributes:
        max_count: samples of one class in one contribution.
        max_classes: classes in one contribution.
        max_bytes: bytes of the arrays of one contribution.
        max_feature: magnitude of a (mapped) feature, hence of a mean.
    """

    max_count: int = 10_000_000
    max_classes: int = 100_000
    max_bytes: int = 1 << 30
    max_feature: float = 1e6


@dataclass(frozen=True)
class Contribution:
    """Statistics that a client adds to the federation.

    Attributes:
        memory: of the samples that are new (``delta``) or of all samples of the client (``full``).
        epoch: random text that stands for one life of the client's state, the same in all its
            messages until the state is lost.
        seq: number of the contribution within the epoch, from 1.
        kind: ``"delta"`` is added; ``"full"`` replaces what the client contributed before.
        names: class id -> name, where classes are known by name (:func:`class_id_of`).
    """

    memory: PrototypeMemory
    epoch: str
    seq: int
    kind: Kind = "delta"
    names: Mapping[int, str] = field(default_factory=dict)


def class_id_of(name: str) -> int:
    """The class id that every client gives to ``name``: 62 bits of its SHA-256.

    Clients that share names rather than numbers need no agreement beforehand, and the merged
    memory does not depend on who came first.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 2


def encode(
    contribution: Contribution, precision: Precision = "exact"
) -> tuple[ArrayRecord, ConfigRecord]:
    """The two records that carry a contribution (or, with kind ``merged``, the server's memory)."""
    memory = contribution.memory
    arrays = pack(memory, precision)
    header = ConfigRecord(
        {
            "format": FORMAT,
            "version": VERSION,
            "kind": contribution.kind,
            "epoch": contribution.epoch,
            "seq": contribution.seq,
            "precision": precision,
            "fingerprint": memory.fingerprint or "",
            **memory.describe(),
        }
    )
    if contribution.names:
        header["class-names"] = [contribution.names[int(c)] for c in memory.classes]
    return ArrayRecord({name: Array(array) for name, array in arrays.items()}), header


def decode(
    arrays: ArrayRecord,
    header: ConfigRecord,
    like: PrototypeMemory,
    limits: Limits | None = None,
) -> Contribution:
    """Check what came in and read it.

    Args:
        arrays, header: as :func:`encode` makes them, from a sender that may be faulty or hostile.
        like: the memory that it must fit: width, level, feature map, arithmetic, fingerprint. It
            is not changed.
        limits: what it may at most claim.

    Raises:
        RejectedError: anything does not fit; the reason says what.
    """
    limits = limits or Limits()
    _check_header(header, like)
    size = sum(len(array.data) for array in arrays.values())
    if size > limits.max_bytes:
        raise RejectedError(
            "size", f"{size} bytes of arrays; at most {limits.max_bytes} are accepted"
        )
    precision: Precision = header["precision"]  # type: ignore[assignment]
    try:
        memory = unpack(_read_arrays(arrays), like, precision)
    except DataError as error:
        raise RejectedError("shape", str(error)) from error
    _check_values(memory, limits, ERROR_BOUNDS[precision])
    return Contribution(
        memory,
        epoch=str(header["epoch"]),
        seq=int(header["seq"]),  # type: ignore[arg-type]
        kind=header["kind"],  # type: ignore[arg-type]
        names=_checked_names(memory, header.get("class-names")),
    )


# -- checks -------------------------------------------------------------------------------------


def _check_header(header: ConfigRecord, like: PrototypeMemory) -> None:
    if header.get("format") != FORMAT or header.get("version") != VERSION:
        raise RejectedError(
            "format",
            f"format {header.get('format')!r} version {header.get('version')!r}; expected "
            f"'{FORMAT}' version {VERSION}: install the same protocl on all nodes",
        )
    for key, kind in (("epoch", str), ("seq", int), ("fingerprint", str)):
        if not isinstance(header.get(key), kind):
            raise RejectedError("format", f"{key}={header.get(key)!r}: expected {kind.__name__}")
    if header.get("precision") not in ERROR_BOUNDS:
        raise RejectedError("format", f"precision {header.get('precision')!r} is unknown")
    if header.get("kind") not in ("delta", "full", "merged"):
        raise RejectedError(
            "format", f"kind {header.get('kind')!r}: expected delta, full or merged"
        )
    theirs = str(header["fingerprint"])
    if like.fingerprint is not None and theirs != like.fingerprint:
        raise RejectedError(
            "fingerprint",
            f"statistics of backbone {theirs or '(none)'}; this federation's is {like.fingerprint}",
        )
    described = like.describe()
    if not like.exact:
        described.pop("step")
    for key, value in described.items():
        if header.get(key) != value:
            raise RejectedError("mismatch", f"{key} is {header.get(key)!r}; expected {value!r}")


def _read_arrays(record: ArrayRecord) -> Arrays:
    return {name: read_npy(array.data) for name, array in record.items()}


def read_npy(data: bytes) -> NDArray[np.generic]:
    """The array in ``data`` (``.npy`` bytes), without copying it.

    ``numpy.load`` allocates whatever a header claims and opens archives as well; here the claim
    is held against the bytes that are there.

    Raises:
        DataError: not the bytes of one plain array.
    """
    try:
        if data[:8] not in (b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00"):
            raise DataError("an array is not in .npy format")
        wide = data[6] == 2
        start = 12 if wide else 10
        (length,) = struct.unpack_from("<I" if wide else "<H", data, 8)
        kind, shape, fortran = _read_claim(data[start : start + min(length, _LONGEST_CLAIM)])
        content = memoryview(data)[start + length :]
        array = np.frombuffer(content, dtype=kind)
        return array.reshape(shape, order="F" if fortran else "C")
    except (ValueError, SyntaxError, KeyError, TypeError, struct.error) as error:
        raise DataError(f"an array is not in .npy format: {error}") from error


@lru_cache(maxsize=1024)  # messages of one federation repeat a few headers
def _read_claim(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    claimed = ast.literal_eval(header.decode("ascii"))
    kind, shape = np.dtype(claimed["descr"]), tuple(claimed["shape"])
    if kind.kind not in "if" or claimed["fortran_order"] not in (False, True):
        raise DataError(f"an array is of type {kind}; expected numbers")
    return kind, shape, claimed["fortran_order"]


def _check_values(memory: PrototypeMemory, limits: Limits, error: float) -> None:
    ids, counts = memory.get_buffer("class_ids"), memory.get_buffer("count")
    if len(ids) > limits.max_classes:
        raise RejectedError(
            "bounds", f"{len(ids)} classes; at most {limits.max_classes} are accepted"
        )
    if bool((ids[1:] <= ids[:-1]).any()) or bool((ids[:1] < 0).any()):
        raise RejectedError("values", "class ids are negative, repeated or out of order")
    if len(counts) and not 1 <= int(counts.min()) <= int(counts.max()) <= limits.max_count:
        raise RejectedError(
            "bounds",
            f"counts lie in {int(counts.min())}..{int(counts.max())}; "
            f"expected 1..{limits.max_count}",
        )
    _check_magnitudes(memory, limits.max_feature * (1 + error))
    if memory.level != "mean":
        _check_moment(memory, error)


def _check_magnitudes(memory: PrototypeMemory, largest_feature: float) -> None:
    """No mean may exceed the largest feature; NaN and infinity fail the same comparison."""
    counts = memory.get_buffer("count").to(torch.float64)
    for name in memory._shapes:
        unit, power = (1.0, 1) if name != "second" else (largest_feature, 2)
        samples = counts.sum() if memory._is_shared(name) else counts
        bound = samples * largest_feature * unit
        if memory.exact:
            bound = bound / memory.step**power
        for part in (name,) if memory.exact else (name, f"{name}_low"):
            values = memory.get_buffer(part)
            flat = values.reshape(1 if memory._is_shared(name) else len(values), -1)
            # Largest and smallest in one pass each; abs() would write a copy of everything.
            if flat.numel() and not bool(
                ((flat.amax(1) <= bound) & (flat.amin(1) >= -bound)).all()
            ):
                raise RejectedError(
                    "values",
                    f"array '{name}' holds NaN, infinite values, or means of features beyond "
                    f"{largest_feature:g}",
                )


def _check_moment(memory: PrototypeMemory, error: float) -> None:
    """``n sum f^2 >= (sum f)^2`` in every dimension: no variance is negative."""
    counts = memory.get_buffer("count").to(torch.float64)[:, None]
    second = memory.second_moment
    diagonal = second if memory.level == "diagonal" else second.diagonal(dim1=-2, dim2=-1)
    explained = memory.sums**2 / counts
    if memory.level == "shared":
        explained, counts = explained.sum(0), counts.sum()
    largest = max(float(second.abs().max()), float(explained.max())) if len(memory) else 0.0
    if bool((diagonal < explained - (1e-9 + 4 * error) * largest).any()):
        raise RejectedError("values", "the second moment is less than the means allow")


def _checked_names(memory: PrototypeMemory, names: Any) -> dict[int, str]:
    if names is None:
        return {}
    ids = memory.classes.tolist()
    if not isinstance(names, list) or len(names) != len(ids):
        raise RejectedError("names", f"class names are {names!r:.80}; expected one for each class")
    for class_id, name in zip(ids, names, strict=True):
        if not isinstance(name, str) or class_id_of(name) != class_id:
            raise RejectedError("names", f"class '{name}' has id {class_id}, which is not its own")
    return dict(zip(ids, names, strict=True))
