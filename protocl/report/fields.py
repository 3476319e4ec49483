"""Typed access to parsed JSON, with errors that name the field and what stood there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from protocl.errors import DataError

T = TypeVar("T")
_MISSING = object()


class Fields:
    """The fields of one JSON object.

    Args:
        data: the object as parsed.
        where: its place in the file, such as ``"benchmark"``; empty for the whole file.

    Raises:
        DataError: ``data`` is not an object.
    """

    def __init__(self, data: Any, where: str = "") -> None:
        if not isinstance(data, Mapping):
            raise DataError(f"{where or 'the file'} should be an object, but is {_brief(data)}")
        self._data = data
        self._where = where

    def get(self, key: str, kind: type[T]) -> T:
        """The value of ``key``, which must be there and be of ``kind`` (an int is a float)."""
        value = self.optional(key, kind)
        if value is None:
            raise DataError(f"{self._name(key)} is missing; expected {kind.__name__}")
        return value

    def optional(self, key: str, kind: type[T]) -> T | None:
        """The value of ``key``, or None where it is absent or null."""
        value = self._data.get(key)
        if value is None:
            return None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise DataError(f"{self._name(key)} should be {kind.__name__}, but is {_brief(value)}")
        return value

    def inside(self, key: str) -> Fields:
        """The object under ``key``."""
        return Fields(self._data.get(key, _MISSING), self._name(key))

    def list_of(self, key: str, kind: type[T]) -> list[T]:
        """The list under ``key``, all of whose values are of ``kind``."""
        return _checked_list(self.get(key, list), kind, self._name(key))

    def rows_of(self, key: str, kind: type[T]) -> list[list[T]]:
        """The list of lists under ``key``, all of whose values are of ``kind``."""
        name = self._name(key)
        rows = self.list_of(key, list)
        return [_checked_list(row, kind, f"{name}[{i}]") for i, row in enumerate(rows)]

    def _name(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key


def _checked_list(values: list[Any], kind: type[T], name: str) -> list[T]:
    fields = Fields(dict(enumerate(values)), name)
    return [fields.get(i, kind) for i in range(len(values))]  # type: ignore[arg-type]


def _brief(value: Any) -> str:
    if value is _MISSING:
        return "absent"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
