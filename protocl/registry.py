"""Named parts (strategies, heads, backbones, benchmarks), found through entry points.

A third party's package registers a part by declaring, in its own ``pyproject.toml``::

    [project.entry-points."protocl.strategies"]
    my_method = "my_package.my_module:MyConfig"

protocl's own parts are declared in the same way, so there is one path for both.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
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
        """Where each registered part is, by name; read anew from all that is installed."""
        return {entry.name: entry for entry in entry_points(group=self.group)}

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
