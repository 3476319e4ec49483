"""Python's values as settings: which of them make a sweep, and which are one value."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, get_origin

import torch

from protocl.config.arguments import Argument
from protocl.config.presets import flatten
from protocl.config.validation import hints_of, members_of
from protocl.errors import ConfigError
from protocl.runner.kind import Kind

Word = str | dict[str, Any]
"""What may stand before the named settings: ``key=value`` as typed, or a dictionary of settings."""


def arguments_of(
    kind: Kind[Any], words: Sequence[Word], settings: Mapping[str, Any]
) -> list[Argument]:
    """What a call asks for, as the runner takes it; of a key given twice the later value counts.

    Args:
        kind: of the runs.
        words: ``"key=value"`` as on the command line, or dictionaries of settings.
        settings: values by key. A list is a sweep, unless the setting itself is a list and the
            members are none; a tuple is one value. A text is taken as it is. A dictionary holds
            the keys of its section, at any depth.

    Raises:
        ConfigError: a value is of a type that no setting has.
    """
    given: dict[str, Any] = {}
    typed: dict[str, str] = {}
    for word in (*words, settings):
        if isinstance(word, str):
            typed[word.partition("=")[0]] = word
            given.pop(word.partition("=")[0], None)
        elif isinstance(word, Mapping):
            given |= {key: plain(key, value) for key, value in flatten(word).items()}
            typed = {key: text for key, text in typed.items() if key not in given}
        else:
            raise ConfigError(f"{word!r}: expected a text such as 'seed=1', or a dictionary")
    return _decided(kind, list(typed.values()), given)


def plain(key: str, value: Any) -> Any:
    """A value as configurations hold it; arrays and ranges become lists.

    Raises:
        ConfigError: it is of a type that no setting has.
    """
    if hasattr(value, "tolist"):  # NumPy's, PyTorch's and pandas' arrays and numbers
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike | torch.device):
        return str(value)
    if isinstance(value, list | range):
        return [plain(key, member) for member in value]
    if isinstance(value, tuple):
        return tuple(plain(key, member) for member in value)
    if isinstance(value, dict):
        return {str(name): plain(f"{key}.{name}", member) for name, member in value.items()}
    raise ConfigError(
        f"{key}={value!r}: a setting cannot be a {type(value).__name__}; expected a number, a "
        "text, a truth value, None, a path, a tuple or a dictionary of them, or a list for a sweep"
    )


def _decided(kind: Kind[Any], typed: list[str], given: Mapping[str, Any]) -> list[Argument]:
    """Every key with its values.

    The type of the setting says whether a list is one value. That is known once the part is picked
    that has the setting: a key comes after those of the sections around it.
    """
    decided: dict[str, Argument] = {}
    for key in sorted(given, key=lambda key: (key.count("."), not key.endswith(".name"))):
        value = given[key]
        several = isinstance(value, list)
        if several and not any(isinstance(member, list | tuple) for member in value):
            several = not _takes_a_list(kind, [*typed, *decided.values()], key)
        decided[key] = (key, [listed(member) for member in value] if several else [listed(value)])
    return [*typed, *(decided[key] for key in given)]


def _takes_a_list(kind: Kind[Any], others: Sequence[Argument], key: str) -> bool:
    try:
        section: Any = kind.compose(kind.settle(others)[0])
    except ConfigError:  # which is told when the runs are composed
        return False
    *outer, name = key.split(".")
    for word in outer:
        section = getattr(section, word, None)
    if not is_dataclass(section) or name not in hints_of(section.__class__):
        return False
    hint = hints_of(section.__class__)[name]
    return any((get_origin(member) or member) in (list, tuple) for member in members_of(hint))


def listed(value: Any) -> Any:
    """A tuple as a list, which is what a configuration holds."""
    if isinstance(value, dict):
        return {name: listed(member) for name, member in value.items()}
    return [listed(member) for member in value] if isinstance(value, list | tuple) else value
