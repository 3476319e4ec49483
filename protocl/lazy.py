"""Names of a package that are imported when they are first asked for, and what that costs."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
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


@contextmanager
def first_imports() -> Iterator[None]:
    """Import torch and what needs it in the block, without looking for garbage among modules.

    They are hundreds of thousands of objects that stay: to look through them while they are made,
    whenever the process looks through all, and once more at its end takes a second. Where torch has
    been imported before, there is other work whose garbage counts, and all is as it was.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
