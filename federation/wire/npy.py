"""Arrays in Flower's messages: the bytes of ``.npy`` files, written and read without detours."""

from __future__ import annotations

import io
import math
import re
import struct
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

from protocl.errors import DataError

_SERIALIZED = "numpy.ndarray"  # how Flower names these bytes
_LONGEST_CLAIM = 10_000  # characters of an array's header; numpy's own limit
_CLAIM = re.compile(
    r"\{'descr': '([<>|][if][1248])', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,19}, ?)*\d{0,19}),?\),? ?\} *\n?"
)
"""What numpy writes, and nothing else. It is not evaluated: that takes gigabytes for some texts."""
_USUAL_HEADER = 128  # bytes before the content of an array of few dimensions


def array_of(values: NDArray[Any]) -> Array:
    """What ``Array(values)`` gives, in a fraction of its time for a small array.

    ``numpy.save`` takes longer over the header than over some thousand numbers.
    """
    kind, header = _kind_and_header(values.dtype, values.shape)
    data = b"".join((header, np.ascontiguousarray(values).data))
    return Array(kind, values.shape, _SERIALIZED, data)


@lru_cache(maxsize=1024)  # messages of one federation repeat a few headers
def _kind_and_header(kind: np.dtype[Any], shape: tuple[int, ...]) -> tuple[str, bytes]:
    claim = {"descr": kind.str, "fortran_order": False, "shape": shape}
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, claim)
    return str(kind), buffer.getvalue()


def read_npy(data: bytes) -> NDArray[np.generic]:
    """The array in ``data`` (``.npy`` bytes), without copying it.

    ``numpy.load`` allocates whatever a header claims and opens archives as well; here the claim
    is held against the bytes that are there.

    Raises:
        DataError: not the bytes of one plain array.
    """
    try:
        kind, shape, order, start, size = _read_claim(data[:_USUAL_HEADER])
    except _LongHeaderError as error:
        kind, shape, order, start, size = _read_claim(data[: error.length])
    if len(data) != start + size:
        raise DataError(
            f"an array has {len(data) - start} bytes of content; its shape {shape} of {kind} "
            f"claims {size}"
        )
    try:
        return np.ndarray(shape, kind, data, start, None, order)
    except (ValueError, OverflowError) as error:
        raise DataError(f"an array has the shape {shape}: {error}") from error


class _LongHeaderError(Exception):
    def __init__(self, length: int) -> None:
        self.length = length


@lru_cache(maxsize=1024)  # messages of one federation repeat a few headers
def _read_claim(
    beginning: bytes,
) -> tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"], int, int]:
    """Type, shape, order, and start and length of the content of an array that begins so."""
    try:
        if beginning[:8] not in (b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00"):
            raise DataError("an array is not in .npy format")
        wide = beginning[6] == 2
        first = 12 if wide else 10
        (length,) = struct.unpack_from("<I" if wide else "<H", beginning, 8)
        start = first + length
        if start > len(beginning) and start <= _LONGEST_CLAIM and len(beginning) == _USUAL_HEADER:
            raise _LongHeaderError(start)
        claim = _CLAIM.fullmatch(beginning[first:start].decode("ascii"))
        if claim is None:
            raise DataError(f"an array claims to be {beginning[first:start]!r:.100}")
        kind, fortran = np.dtype(claim[1]), claim[2] == "True"
        shape = tuple(int(length) for length in claim[3].replace(",", " ").split())
        size = kind.itemsize * math.prod(shape)
        return kind, shape, "F" if fortran else "C", start, size
    except (ValueError, TypeError, IndexError, struct.error) as error:
        raise DataError(f"an array is not in .npy format: {error}") from error
