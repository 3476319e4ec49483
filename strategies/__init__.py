"""Continual learning strategies on prototype memories, as Avalanche plugins."""

from protocl.strategies.analytic.acil import ACIL
from protocl.strategies.analytic.afl import AFL
from protocl.strategies.analytic.air import AIR
from protocl.strategies.analytic.fed3r import Fed3R
from protocl.strategies.analytic.flycl import FlyCL
from protocl.strategies.aper import APER
from protocl.strategies.avalanche.in_memory import InMemory
from protocl.strategies.drift.compensation import DriftCompensation, DriftEstimator
from protocl.strategies.exemplars.sample_memory import SampleMemory
from protocl.strategies.fecam import FeCAM
from protocl.strategies.fetril import FeTrIL, FeTrILPlugin
from protocl.strategies.frozen.base import FrozenBackbone, Sums
from protocl.strategies.frozen.first_session import Session
from protocl.strategies.icarl import ICaRL, ICaRLPlugin
from protocl.strategies.il2a import IL2A, IL2APlugin
from protocl.strategies.napa_vq import NAPAVQ, NAPAVQPlugin
from protocl.strategies.nearest_mean import NearestMean
from protocl.strategies.pass_ import PASS, PASSPlugin
from protocl.strategies.plugin.prototype_plugin import PrototypePlugin
from protocl.strategies.prd import PRD, PRDPlugin
from protocl.strategies.protocl import ProtoCL, ProtoCLPlugin
from protocl.strategies.ranpac import RanPAC
from protocl.strategies.simplecil import SimpleCIL
from protocl.strategies.slda import SLDA

__all__ = [
    "ACIL",
    "AFL",
    "AIR",
    "APER",
    "IL2A",
    "NAPAVQ",
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
    "ICaRL",
    "ICaRLPlugin",
    "IL2APlugin",
    "InMemory",
    "NAPAVQPlugin",
    "NearestMean",
    "PASSPlugin",
    "PRDPlugin",
    "ProtoCL",
    "ProtoCLPlugin",
    "PrototypePlugin",
    "RanPAC",
    "SampleMemory",
    "Session",
    "SimpleCIL",
    "Sums",
]
