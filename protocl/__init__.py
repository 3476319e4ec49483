"""Continual and federated learning on prototype memories."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocl.lazy import importer

if TYPE_CHECKING:
    from protocl.memory import PrototypeMemory

__all__ = ["PrototypeMemory", "__version__"]

__version__ = "0.1.0"

__getattr__ = importer(__name__, {"PrototypeMemory": "memory.memory"})
