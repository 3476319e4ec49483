"""Continual and federated learning on prototype memories."""

from protocl.memory import PrototypeMemory

__all__ = ["PrototypeMemory", "__version__"]

__version__ = "0.1.0"
