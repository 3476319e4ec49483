"""Ranges of settings, and the error for one that is outside of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from protocl.errors import ConfigError


class Range(NamedTuple):
    """Which numbers a setting may have; NaN is in none.

    Attributes:
        expected: the range in words.
        holds: whether a number is in it.
    """

    expected: str
    holds: Callable[[float], bool]


AT_LEAST_0 = Range("at least 0", lambda value: value >= 0)
AT_LEAST_1 = Range("at least 1", lambda value: value >= 1)
POSITIVE = Range("a number > 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = Range("a number >= 0", lambda value: 0 <= value < math.inf)
SHARE = Range("a share in [0, 1]", lambda value: 0 <= value <= 1)
POSITIVE_SHARE = Range("a share in (0, 1]", lambda value: 0 < value <= 1)
SEED = Range("0 <= seed < 2**32", lambda value: 0 <= value < 2**32)
BELOW_1 = Range("a number in [0, 1)", lambda value: 0 <= value < 1)


def is_number(value: object) -> bool:
    """Whether a setting is a number; text, None, a list and ``True`` are none."""
    return hasattr(value, "__float__") and not isinstance(value, bool)


def require(settings: object, prefix: str, **ranges: Range) -> None:
    """Refuse ``settings`` with an attribute outside of its range.

    Args:
        settings: whose attributes are named by ``ranges``; None is in every range.
        prefix: what the user writes before their names, such as ``"strategy."``.

    Raises:
        ConfigError: it names the setting, its value and the range.
    """
    for name, (expected, holds) in ranges.items():
        value = getattr(settings, name)
        if value is not None and not holds(value):
            raise ConfigError(f"{prefix}{name}={value}: expected {expected}")
