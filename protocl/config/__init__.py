"""What can be set: the typed schema of a run, and how values from files and arguments fill it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocl.lazy import importer

if TYPE_CHECKING:
    from protocl.config.schema import ExperimentConfig, Setup, StrategyConfig, StrategyInfo

__all__ = ["ExperimentConfig", "Setup", "StrategyConfig", "StrategyInfo"]

__getattr__ = importer(__name__, dict.fromkeys(__all__, "schema"))
