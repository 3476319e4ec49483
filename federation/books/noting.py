"""Tables that note which of their keys changed, so that only those are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Table = dict[Any, Any] | set[Any]
T = TypeVar("T")


class _Notes:
    """Attributes: changed: keys that are not as they were when this was last emptied."""

    changed: set[Any]


def _noting(method: Callable[..., T]) -> Callable[..., T]:
    """The method of a table, whose first argument is a key, that notes it first."""

    def noted(self: Any, key: Any, *more: Any) -> T:
        self.changed.add(key)
        return method(self, key, *more)

    noted.__name__, noted.__doc__ = method.__name__, method.__doc__
    return noted


class NotedDict(_Notes, dict[Any, Any]):
    """A dict that notes its changes.

    >>> ages = NotedDict({"a": 1})
    >>> ages.changed.clear()
    >>> ages |= {"b": 2}; _ = ages.pop("a"); sorted(ages.changed)
    ['a', 'b']
    """

    def __init__(self, values: dict[Any, Any]) -> None:
        self.changed = set(values)
        super().__init__(values)

    __setitem__ = _noting(dict.__setitem__)
    __delitem__ = _noting(dict.__delitem__)
    setdefault = _noting(dict.setdefault)
    pop = _noting(dict.pop)

    def update(self, values: dict[Any, Any]) -> None:  # type: ignore[override]
        """See ``dict``."""
        self.changed.update(values)
        super().update(values)

    def __ior__(self, values: Any) -> Any:  # type: ignore[misc]
        self.update(values)
        return self


class NotedCounter(NotedDict, Counter[Any]):  # type: ignore[misc]
    """A counter that notes its changes."""


class NotedSet(_Notes, set[Any]):
    """A set that notes its changes."""

    def __init__(self, values: Iterable[Any]) -> None:
        super().__init__(values)
        self.changed = set(self)

    add = _noting(set.add)
    discard = _noting(set.discard)
    remove = _noting(set.remove)

    def update(self, *values: Iterable[Any]) -> None:
        """See ``set``."""
        for value in values:
            self |= value

    def __ior__(self, values: Iterable[Any]) -> Any:  # type: ignore[misc]
        for value in values:
            self.add(value)
        return self


def noted(table: Any) -> Any:
    """The same table, which notes its changes; all that is in it is new."""
    if isinstance(table, set):
        return NotedSet(table)
    return (NotedCounter if isinstance(table, Counter) else NotedDict)(table)
