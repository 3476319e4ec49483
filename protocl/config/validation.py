"""Which values a setting may have, said where it is declared, and the error for any other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

_RANGE = "range"


class Range(NamedTuple):
    """Which numbers a setting may have; NaN is in none.

    Attributes:
        expected: the range in words.
        holds: whether a number is in it.
    """

    expected: str
    holds: Callable[[Any], bool]


AT_LEAST_0 = Range("at least 0", lambda value: value >= 0)
AT_LEAST_1 = Range("at least 1", lambda value: value >= 1)
POSITIVE = Range("a number > 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = Range("a number >= 0", lambda value: 0 <= value < math.inf)
SHARE = Range("a share in [0, 1]", lambda value: 0 <= value <= 1)
POSITIVE_SHARE = Range("a share in (0, 1]", lambda value: 0 < value <= 1)
SEED = Range("0 <= seed < 2**32", lambda value: 0 <= value < 2**32)
BELOW_1 = Range("a number in [0, 1)", lambda value: 0 <= value < 1)
SHARES = Range(
    "two shares, 0 <= least <= largest <= 1", lambda value: 0 <= value[0] <= value[1] <= 1
)


def is_number(value: object) -> bool:
    """Whether a setting is a number; text, None, a list and ``True`` are none."""
    return hasattr(value, "__float__") and not isinstance(value, bool)


def ranged(default: Any, allowed: Range) -> Any:
    """A field of a dataclass with its default and its range; None is in every range."""
    return field(default=default, metadata={_RANGE: allowed})


def require_declared(settings: Any) -> None:
    """Refuse a dataclass with a value outside of what its field declares: range or ``Literal``.

    Raises:
        ValueError: it names the field, its value, and what was expected.
    """
    schema = settings.__class__
    for name, hint in hints_of(schema).items():
        value = getattr(settings, name)
        if get_origin(hint) is Literal:
            require_choice(name, value, get_args(hint))
        _require(name, value, range_of(schema, name))


def require_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Refuse a value that is none of ``choices``, such as ``get_args(Literal["sgd", "adam"])``.

    Raises:
        ValueError: it names the argument, its value, and the choices.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected {_or(map(repr, choices))}")


def _require(name: str, value: Any, allowed: Range | None) -> None:
    if allowed is not None and value is not None and not allowed.holds(value):
        raise ValueError(f"{name}={value}: expected {allowed.expected}")


@cache
def range_of(schema: type, name: str) -> Range | None:
    """Where a subclass gives a field another default, the range stays."""
    homes = [vars(kind)["__dataclass_fields__"] for kind in schema.__mro__ if is_dataclass(kind)]
    ranges = [home[name].metadata.get(_RANGE) for home in homes if name in home]
    return next(filter(None, ranges), None)


@cache
def hints_of(schema: type) -> Mapping[str, Any]:
    """The types of a dataclass's fields by name."""
    hints = get_type_hints(schema)
    return {declared.name: hints[declared.name] for declared in fields(schema)}


def members_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def in_words(hint: Any) -> str:
    """What a setting of this type accepts: ``a number or auto``; without words, its annotation."""
    members = members_of(hint)
    if not any(get_origin(member) is Literal for member in members):
        return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
    words: list[str] = []
    for member in members:
        literal = get_origin(member) is Literal
        words += map(str, get_args(member)) if literal else [_WORDS.get(member, str(member))]
    return _or(words)


_WORDS = {float: "a number", int: "a whole number", NoneType: "null"}


def _or(words: Any) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else str(last)
