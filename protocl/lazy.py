"""Names of a package that are imported when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any


def importer(
    package: str, homes: Mapping[str, str], rooms: Collection[str] = ()
) -> Callable[[str], Any]:
    """A module-level ``__getattr__`` (PEP 562).

    Importing torch takes seconds and Flower one more; help and lists of the command do without.

    Args:
        package: ``__name__`` of the package.
        homes: for each public name the module of the package that defines it.
        rooms: subpackages that are found as attributes without having been imported.
    """

    def find(name: str) -> Any:
        if name in rooms:
            return import_module(f"{package}.{name}")
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return find
