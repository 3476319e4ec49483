"""Bytes of a message as protocol buffers, reckoned from its parts without serialising them.

Source: Protocol Buffers, Encoding: a field is a tag, for what has no fixed length a varint of it,
and the content; a field at its default is left out unless it is one of several. The fields are
those of Flower's ``recorddict.proto``, each of whose tags has one byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

_INT32, _INT64, _UINT64 = 2**31, 2**63, 2**64


class UnusualError(Exception):
    """A part whose size is not reckoned here: serialise it."""


def reckoned_bytes(content: RecordDict) -> int:
    """Bytes of the serialised records of a message.

    Raises:
        UnusualError: it holds lists, or what Flower would refuse to serialise.
    """
    try:
        return sum(_item(name, _record(record)) for name, record in content.items())
    except UnicodeEncodeError as error:
        raise UnusualError from error


def _record(record: Any) -> int:
    sizes = _SIZES.get(type(record))
    if sizes is None:
        raise UnusualError
    total = 0
    for name, value in record.items():
        size = sizes.get(type(value))
        if size is None:
            raise UnusualError
        total += _item(name, size(value))
    return total


def _item(name: str, size: int) -> int:
    """A name beside a value of ``size`` bytes, as a field."""
    return _field(_text(name) + _field(size))


def _field(size: int) -> int:
    """A tag and a length before ``size`` bytes."""
    return 1 + _varint(size) + size


def _varint(value: int) -> int:
    """Seven bits a byte."""
    return (value.bit_length() + 6) // 7 or 1


def _length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _text(text: str) -> int:
    """A field that is left out where it is empty."""
    return _field(_length(text)) if text else 0


def _array(array: Array) -> int:
    if type(array.data) is not bytes or not all(map(_is_length, array.shape)):
        raise UnusualError
    sides = sum(map(_varint, array.shape))
    shape = _field(sides) if sides else 0
    data = _field(len(array.data)) if array.data else 0
    return _text(array.dtype) + shape + _text(array.stype) + data


def _is_length(side: Any) -> bool:
    return type(side) is int and 0 <= side < _INT32


def _whole(value: int) -> int:
    """Zigzag, or without a sign where it needs 64 bits."""
    if not -_INT64 <= value < _UINT64:
        raise UnusualError
    if value < _INT64:
        value = 2 * value if value >= 0 else -2 * value - 1
    return 1 + _varint(value)


_NUMBERS: dict[type, Callable[[Any], int]] = {int: _whole, float: lambda _: 9}
_SIZES: Mapping[type, Mapping[type, Callable[[Any], int]]] = {
    ArrayRecord: {Array: _array},
    MetricRecord: _NUMBERS,
    ConfigRecord: {
        **_NUMBERS,
        bool: lambda _: 2,
        str: lambda text: _field(_length(text)),
        bytes: lambda content: _field(len(content)),
    },
}
