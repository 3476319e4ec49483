"""Training of an embedding on base classes, before any class arrives incrementally."""

from protocl.pretraining.config import ObjectiveConfig, PretrainConfig
from protocl.pretraining.run import pretrain

__all__ = ["ObjectiveConfig", "PretrainConfig", "pretrain"]
