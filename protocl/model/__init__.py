"""Models in use: a classifier over features that learns, forgets, merges, and is kept in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocl.lazy import importer

if TYPE_CHECKING:
    from protocl.model.classifier import PrototypeClassifier

__all__ = ["PrototypeClassifier"]

__getattr__ = importer(__name__, dict.fromkeys(__all__, "classifier"))
