"""The pages of the API reference: every public name of every room, by its docstring."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from protocl.registry import MAPS

ROOMS = (
    "protocl", "protocl.memory", "protocl.memory.pending", "protocl.heads", "protocl.strategies",
    "protocl.federation", "protocl.model", "protocl.backbones", "protocl.data", "protocl.metrics",
    "protocl.checks", "protocl.report", "protocl.streaming",
)  # fmt: skip
"""Modules whose public names have a place in the reference, in this order."""


def public_names() -> dict[str, str]:
    """The identifier of each public name; where rooms share one, that of the first."""
    found: dict[str, str] = {}
    for room in ROOMS:
        for identifier in _identifiers(room):
            found.setdefault(_last(identifier), identifier)
    return found


def all_pages() -> Iterator[tuple[str, str]]:
    """Path and text of every page of the reference."""
    homes = set(public_names().values())
    rows = []
    for room in ROOMS:
        own = [name for name in _identifiers(room) if name in homes]
        if not own:
            continue
        said = (import_module(room).__doc__ or "").strip().partition("\n\n")[0].replace("\n", " ")
        blocks = "\n\n".join(f"::: {name}" for name in own)
        yield f"api/{room}.md", f"# {room}\n\n{said}\n\n{blocks}\n"
        listed = ", ".join(f"[`{_last(name)}`][{name}]" for name in own)
        rows.append(f"| [{room}]({room}.md) | {listed} |")
    table = "\n".join(["| module | names |", "| --- | --- |", *rows])
    yield "api/index.md", f"# API reference\n\nEvery public name, by module.\n\n{table}\n"


def _identifiers(room: str) -> list[str]:
    names = [name for name in import_module(room).__all__ if not name.startswith("__")]
    found = [f"{room}.{name}" for name in names]
    if room == "protocl.memory":  # feature maps are found by their registry
        found += sorted({entry.value.replace(":", ".") for entry in MAPS.entries().values()})
    return found


def _last(identifier: str) -> str:
    return identifier.rpartition(".")[2]
