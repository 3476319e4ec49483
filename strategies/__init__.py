"""Continual learning strategies on prototype memories, as Avalanche plugins."""

from protocl.strategies.fecam import FeCAM
from protocl.strategies.in_memory import InMemory
from protocl.strategies.nearest_mean import NearestMean
from protocl.strategies.prd import PRD, PRDPlugin
from protocl.strategies.protocl import ProtoCL, ProtoCLPlugin
from protocl.strategies.prototype_plugin import PrototypePlugin
from protocl.strategies.ranpac import RanPAC
from protocl.strategies.slda import SLDA

__all__ = [
    "PRD",
    "SLDA",
    "FeCAM",
    "InMemory",
    "NearestMean",
    "PRDPlugin",
    "ProtoCL",
    "ProtoCLPlugin",
    "PrototypePlugin",
    "RanPAC",
]
