"""Prototype memories: what is kept of each class, as sums that can be added and subtracted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocl.lazy import importer

if TYPE_CHECKING:
    from protocl.memory.memory import PrototypeMemory

__all__ = ["PrototypeMemory"]

__getattr__ = importer(__name__, dict.fromkeys(__all__, "memory"))
