"""Models in use: a classifier that learns, forgets and merges, is kept in a folder and exported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocl.lazy import importer

if TYPE_CHECKING:
    from protocl.model.classifier import PrototypeClassifier
    from protocl.model.folder import load_model, save_model
    from protocl.model.trained import TrainedClassifier

__all__ = ["PrototypeClassifier", "TrainedClassifier", "load_model", "save_model"]

_HOMES = {
    "PrototypeClassifier": "classifier",
    "TrainedClassifier": "trained",
    "load_model": "folder",
    "save_model": "folder",
}

__getattr__ = importer(__name__, _HOMES)
