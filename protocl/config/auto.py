"""Settings that are a number or the word "auto"."""

from __future__ import annotations

from typing import Literal

from protocl.errors import ConfigError


def auto_or_number(key: str, value: float | str) -> float | Literal["auto"]:
    """The value of the setting ``key``.

    Raises:
        ConfigError: it is a word other than "auto".
    """
    if value == "auto":
        return "auto"
    if isinstance(value, str):
        raise ConfigError(f"{key}={value}: expected a number or auto")
    return value
