"""Changes of tables that are taken back where something after them fails."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, MutableMapping, MutableSet
from typing import Any

Undo = Callable[[], None]
"""Takes back; a second call changes nothing more."""

Table = MutableMapping[Any, Any] | MutableSet[Any]


def undo_of(places: Iterable[tuple[Table, Hashable]]) -> Undo:
    """What puts back, at each place, a value that is replaced and never changed, or its absence.

    >>> ages, known = {"a": 1}, {"a"}
    >>> undo = undo_of([(ages, "a"), (ages, "b"), (known, "b")])
    >>> ages |= {"a": 2, "b": 3}; known.add("b"); undo(); ages, known
    ({'a': 1}, {'a'})
    """
    absent = object()
    found: list[tuple[Table, Hashable, object]] = []
    for table, key in places:
        value = absent if key not in table else key
        if value is not absent and isinstance(table, MutableMapping):
            value = table[key]
        found.append((table, key, value))

    def undo() -> None:
        for table, key, value in found:
            _put(table, key, value, present=value is not absent)

    return undo


def _put(table: Table, key: Hashable, value: object, *, present: bool) -> None:
    if isinstance(table, MutableSet):
        (table.add if present else table.discard)(key)
    elif present:
        table[key] = value
    else:
        table.pop(key, None)
