"""Docstrings of strategies that take their arguments from a head and from the frozen backbone."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

_SECTION = re.compile(r"^Args:\n(.*?)(?=^\S|\Z)", re.MULTILINE | re.DOTALL)
_ENTRY = re.compile(r"^ {4}(?=\S)", re.MULTILINE)
_REST = "**settings"


def with_arguments(doc: str, *made_by: Callable[..., Any], made: str) -> str:
    """A docstring in which ``**settings: those of ...`` gives way to the arguments themselves.

    Args:
        doc: it may describe arguments of its own, which come first.
        made_by: whose arguments those are.
        made: the argument that is made of others, and left out.
    """
    text = inspect.cleandoc(doc)
    entries = {name: entry for name, entry in _entries(text).items() if name != _REST}
    for maker in made_by:
        kind = maker.func if isinstance(maker, partial) else maker
        taken = inspect.signature(maker).parameters.keys() - {made} | {_REST}
        for name, entry in _entries(inspect.cleandoc(kind.__doc__ or "")).items():
            if not taken.isdisjoint(name.split(", ")):
                entries.setdefault(name, entry)
    listed = "Args:\n" + "".join(f"    {entry}\n" for entry in entries.values())
    before, after = (*_SECTION.split(text)[::2], "")[:2]
    return f"{before.rstrip()}\n\n{listed}\n{after}".rstrip() + "\n"


def _entries(doc: str) -> dict[str, str]:
    """The text of each argument in the section ``Args``, by the names before its colon."""
    found = _SECTION.search(doc)
    entries = [] if found is None else _ENTRY.split(found[1])[1:]
    return {entry.partition(":")[0]: entry.rstrip() for entry in entries}
