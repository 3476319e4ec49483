"""Continual and federated learning on prototype memories."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocl.lazy import importer

if TYPE_CHECKING:
    from protocl.memory import PrototypeMemory
    from protocl.model import PrototypeClassifier, load_model, save_model

__all__ = ["PrototypeClassifier", "PrototypeMemory", "__version__", "load_model", "save_model"]

__version__ = "0.1.0"

_HOMES = {
    "PrototypeClassifier": "model.classifier",
    "PrototypeMemory": "memory.memory",
    "load_model": "model.folder",
    "save_model": "model.folder",
}

__getattr__ = importer(__name__, _HOMES)
