"""Named parts (strategies, heads, backbones, benchmarks), found through entry points.

A third party's package registers a part by declaring, in its own ``pyproject.toml``::

    [project.entry-points."protocl.strategies"]
    my_method = "my_package.my_module:MyConfig"

protocl's own parts are declared in the same way, so there is one path for both.
"""

from __future__ import annotations

import ast
import difflib
import os
import sys
from collections.abc import Collection, Iterable
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from protocl.errors import ConfigError

T = TypeVar("T")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not among ``known``; it names the nearest one.

    Args:
        kind: what the name should have been, as a singular noun ("strategy").
        name: what was asked for.
        known: the names that exist.
    """
    choices = sorted(known)
    near = difflib.get_close_matches(str(name), choices, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return ConfigError(
        f"unknown {kind} '{name}': {hint}choose from {', '.join(choices) or '(none)'}"
    )


def written_setting(owner: str, word: str, choices: Collection[str]) -> tuple[str, Any]:
    """A setting of a part as it is written behind its name: ``dim=2000`` of ``top_k:dim=2000``.

    Args:
        owner: the part, for messages.
        word: what is written.
        choices: settings that it has.

    Returns:
        Its name and its value: a number or truth value where the word is one, else the word.

    Raises:
        ConfigError: it has no such setting; the message names the nearest.

    >>> written_setting("feature map 'top_k'", "dim=2000", ["dim", "keep"])
    ('dim', 2000)
    """
    key, separator, value = word.partition("=")
    if not separator or key not in choices:
        near = difflib.get_close_matches(key, choices, n=1)
        hint = f"did you mean '{near[0]}=...'? " if near else ""
        raise ConfigError(
            f"{owner} has no setting '{word}': {hint}expected SETTING=VALUE with "
            f"{', '.join(choices) or 'none'}"
        )
    return key, written_value(value)


def written_value(word: str) -> Any:
    """A number or truth value where a word is one, else the word."""
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word


class Registry:
    """The parts that installed packages declare under one entry-point group.

    Args:
        group: entry-point group, such as ``"protocl.strategies"``.
        kind: singular noun used in messages.
    """

    def __init__(self, group: str, kind: str) -> None:
        self.group = group
        self.kind = kind

    def entries(self) -> dict[str, EntryPoint]:
        """Where each registered part is, by name, of all that is installed by now."""
        return dict(_entries(self.group, _places()))

    def names(self) -> list[str]:
        """Registered names in alphabetical order."""
        return sorted(self.entries())

    def get(self, name: str) -> Any:
        """Import and return the part called ``name``.

        Raises:
            ConfigError: nothing is registered under ``name``, or its package fails to import.
        """
        entries = self.entries()
        if name not in entries:
            raise unknown_name(self.kind, name, entries)
        return self.load(entries[name])

    def load(self, entry: EntryPoint) -> Any:
        """Import and return the part of one of :meth:`entries`.

        Raises:
            ConfigError: its package fails to import.
        """
        try:
            return entry.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"{self.kind} '{entry.name}' is registered as {entry.value}, "
                f"which cannot be imported: {error}; install that package again"
            ) from error

    def name_of(self, part: Any) -> str | None:
        """The name under which ``part`` is registered, or None."""
        for name, entry in sorted(self.entries().items()):
            if entry.value.rpartition(":")[2] == part.__qualname__ and self.get(name) is part:
                return name
        return None


Places = tuple[tuple[str, int | None], ...]


def _places() -> Places:
    """Where packages may lie, and when something was last put there or taken away.

    Reading what hundreds of packages declare takes as long as many predictions: it is read again
    only where this has changed.
    """
    return tuple(
        (path, _changed(path)) for path in (os.getcwd() if p == "" else p for p in sys.path)
    )


def _changed(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


@lru_cache(maxsize=64)
def _entries(group: str, places: Places) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


STRATEGIES = Registry("protocl.strategies", "strategy")
HEADS = Registry("protocl.heads", "head")
MAPS = Registry("protocl.maps", "feature map")
BACKBONES = Registry("protocl.backbones", "backbone")
ADAPTATIONS = Registry("protocl.adaptations", "adaptation")
ANSWERS = Registry("protocl.answers", "answer")
BENCHMARKS = Registry("protocl.benchmarks", "benchmark")
TRACKERS = Registry("protocl.trackers", "tracker")
SCORES = Registry("protocl.scores", "score of unknown inputs")
METHODS = Registry("protocl.federated", "federated method")
COMMANDS = Registry("protocl.commands", "command")
"""Further commands: a name -> a function that adds a parser, as :mod:`.cli.main` calls it."""
