"""Continual learning strategies on prototype memories, as Avalanche plugins.

Importing this package does not import Avalanche; a name is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocl.lazy import importer

if TYPE_CHECKING:
    from protocl.strategies.aper import APER
    from protocl.strategies.avalanche.in_memory import InMemory
    from protocl.strategies.drift.compensation import DriftCompensation, DriftEstimator
    from protocl.strategies.exemplars.sample_memory import SampleMemory
    from protocl.strategies.fetril import FeTrIL, FeTrILPlugin
    from protocl.strategies.frozen.base import FrozenBackbone
    from protocl.strategies.frozen.recipe import Sums
    from protocl.strategies.frozen.session import Session
    from protocl.strategies.icarl import ICaRL, ICaRLPlugin
    from protocl.strategies.il2a import IL2A, IL2APlugin
    from protocl.strategies.napa_vq import NAPAVQ, NAPAVQPlugin
    from protocl.strategies.open_world.gpc import GPC, GPCPlugin
    from protocl.strategies.open_world.palm import PALM, PALMPlugin
    from protocl.strategies.open_world.protogcd import ProtoGCD, ProtoGCDPlugin
    from protocl.strategies.pass_ import PASS, PASSPlugin
    from protocl.strategies.plugin.prototype_plugin import PrototypePlugin
    from protocl.strategies.prd import PRD, PRDPlugin
    from protocl.strategies.protocl import ProtoCL, ProtoCLPlugin
    from protocl.strategies.ready_made.analytic import ACIL, AFL, AIR, Fed3R, FlyCL, LoRanPAC
    from protocl.strategies.ready_made.recipes import SLDA, FeCAM, NearestMean, RanPAC, SimpleCIL

__all__ = [
    "ACIL",
    "AFL",
    "AIR",
    "APER",
    "GPC",
    "IL2A",
    "NAPAVQ",
    "PALM",
    "PASS",
    "PRD",
    "SLDA",
    "DriftCompensation",
    "DriftEstimator",
    "FeCAM",
    "FeTrIL",
    "FeTrILPlugin",
    "Fed3R",
    "FlyCL",
    "FrozenBackbone",
    "GPCPlugin",
    "ICaRL",
    "ICaRLPlugin",
    "IL2APlugin",
    "InMemory",
    "LoRanPAC",
    "NAPAVQPlugin",
    "NearestMean",
    "PALMPlugin",
    "PASSPlugin",
    "PRDPlugin",
    "ProtoCL",
    "ProtoCLPlugin",
    "ProtoGCD",
    "ProtoGCDPlugin",
    "PrototypePlugin",
    "RanPAC",
    "SampleMemory",
    "Session",
    "SimpleCIL",
    "Sums",
]

_HOMES = {
    "ACIL": "ready_made.analytic",
    "AFL": "ready_made.analytic",
    "AIR": "ready_made.analytic",
    "APER": "aper",
    "DriftCompensation": "drift.compensation",
    "DriftEstimator": "drift.compensation",
    "FeCAM": "ready_made.recipes",
    "FeTrIL": "fetril",
    "FeTrILPlugin": "fetril",
    "Fed3R": "ready_made.analytic",
    "FlyCL": "ready_made.analytic",
    "LoRanPAC": "ready_made.analytic",
    "FrozenBackbone": "frozen.base",
    "GPC": "open_world.gpc",
    "GPCPlugin": "open_world.gpc",
    "ICaRL": "icarl",
    "ICaRLPlugin": "icarl",
    "IL2A": "il2a",
    "IL2APlugin": "il2a",
    "InMemory": "avalanche.in_memory",
    "NAPAVQ": "napa_vq",
    "NAPAVQPlugin": "napa_vq",
    "NearestMean": "ready_made.recipes",
    "PALM": "open_world.palm",
    "PALMPlugin": "open_world.palm",
    "PASS": "pass_",
    "PASSPlugin": "pass_",
    "PRD": "prd",
    "PRDPlugin": "prd",
    "ProtoCL": "protocl",
    "ProtoCLPlugin": "protocl",
    "ProtoGCD": "open_world.protogcd",
    "ProtoGCDPlugin": "open_world.protogcd",
    "PrototypePlugin": "plugin.prototype_plugin",
    "RanPAC": "ready_made.recipes",
    "SLDA": "ready_made.recipes",
    "SampleMemory": "exemplars.sample_memory",
    "Session": "frozen.session",
    "SimpleCIL": "ready_made.recipes",
    "Sums": "frozen.recipe",
}

__getattr__ = importer(__name__, _HOMES)
