"""Models in use: a classifier over features that learns, forgets, merges, and is kept in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocl.lazy import importer

if TYPE_CHECKING:
    from protocl.model.classifier import PrototypeClassifier
    from protocl.model.export import export_onnx, export_program
    from protocl.model.network import Network

__all__ = ["Network", "PrototypeClassifier", "export_onnx", "export_program"]

_HOMES = {
    "Network": "network",
    "PrototypeClassifier": "classifier",
    "export_onnx": "export",
    "export_program": "export",
}

__getattr__ = importer(__name__, _HOMES)
