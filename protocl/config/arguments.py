"""``key=value`` arguments as typed; a comma outside brackets and quotes makes a sweep."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from protocl.errors import ConfigError

Settings = dict[str, Any]
"""Keys as typed on the command line (``strategy``, ``strategy.lr``), each with one value."""

Argument = str | tuple[str, Sequence[Any]]
"""``key=value`` as typed, or a key with its values, one a run of the sweep, as they are."""

_NOT_SWEPT = {"experiment", "jobs", "launcher", "resume", "output", "cache", "tracker"}


def typed_values(arguments: Sequence[Argument]) -> dict[str, list[Any]]:
    """Read arguments: the values of each key, several where a comma or a list makes a sweep.

    Raises:
        ConfigError: an argument is not of the form ``key=value``, its value is not readable, or a
            key has no value, or several that takes one.
    """
    typed: dict[str, list[Any]] = {}
    for argument in arguments:
        key, values = _read(argument) if isinstance(argument, str) else argument
        typed[key] = list(values)
        if not values:
            raise ConfigError(f"{key}=[]: a sweep over no values is no run; give one at least")
        if key in _NOT_SWEPT and len(values) > 1:
            shown = argument if isinstance(argument, str) else f"{key}={list(values)}"
            raise ConfigError(f"{shown}: '{key}' takes one value; it cannot be swept")
    return typed


def _read(argument: str) -> tuple[str, list[Any]]:
    key, equals, text = argument.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{argument}' is not of the form key=value, such as seed=1")
    return key, [_value(key, part) for part in split_commas(text)]


def expand(values: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """Every combination of the values of all keys; the first key varies slowest."""
    return [
        dict(zip(values, combination, strict=True))
        for combination in itertools.product(*values.values())
    ]


def labels(values: Mapping[str, Sequence[Any]]) -> list[str]:
    """What sets the runs of :func:`expand` apart, as typed: ``"strategy=slda seed=1"``.

    Empty where there is only one run.
    """
    swept = [key for key, choices in values.items() if len(choices) > 1]
    return [" ".join(f"{key}={run[key]}" for key in swept) for run in expand(values)]


def split_commas(text: str) -> list[str]:
    """Split at commas that stand outside brackets, braces and quotes.

    >>> split_commas("1,2,[3,4],'a,b'")
    ['1', '2', '[3,4]', "'a,b'"]
    """
    parts = [""]
    depth, quote = 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _value(key: str, text: str) -> Any:
    try:
        node = OmegaConf.from_dotlist([f"value={text}"])
        return cast(Settings, OmegaConf.to_container(node))["value"]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{key}={text}: the value is not readable: {error}") from error
