"""Continual learning strategies on prototype memories, as Avalanche plugins."""

from protocl.strategies.in_memory import InMemory
from protocl.strategies.prototype_plugin import PrototypePlugin

__all__ = ["InMemory", "PrototypePlugin"]
