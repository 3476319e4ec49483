"""Training of an embedding on base classes, before any class arrives incrementally."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocl.lazy import importer

if TYPE_CHECKING:
    from protocl.pretraining.config import ObjectiveConfig, PretrainConfig
    from protocl.pretraining.run import pretrain

__all__ = ["ObjectiveConfig", "PretrainConfig", "pretrain"]

_HOMES = {"ObjectiveConfig": "config", "PretrainConfig": "config", "pretrain": "run"}

__getattr__ = importer(__name__, _HOMES)
