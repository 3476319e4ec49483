"""Models in use: a classifier that learns, forgets and merges, is kept in a folder and exported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocl.lazy import importer

if TYPE_CHECKING:
    from protocl.model.classifier import PrototypeClassifier
    from protocl.model.export import export_onnx, export_program
    from protocl.model.folder import load_model, save_model
    from protocl.model.graph import export_model
    from protocl.model.network import Network
    from protocl.model.trained import TrainedClassifier

__all__ = [
    "Network",
    "PrototypeClassifier",
    "TrainedClassifier",
    "export_model",
    "export_onnx",
    "export_program",
    "load_model",
    "save_model",
]

_HOMES = {
    "Network": "network",
    "PrototypeClassifier": "classifier",
    "TrainedClassifier": "trained",
    "export_model": "graph",
    "export_onnx": "export",
    "export_program": "export",
    "load_model": "folder",
    "save_model": "folder",
}

__getattr__ = importer(__name__, _HOMES)
