"""Federations that exchange prototype memories through Flower."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocl.lazy import importer

if TYPE_CHECKING:
    from protocl.federation.client import ClientData, PrototypeClient
    from protocl.federation.grid import InProcessGrid
    from protocl.federation.options import Options
    from protocl.federation.relayed_grids import QuorumGrid
    from protocl.federation.simulation import simulate
    from protocl.federation.strategy import FederatedPrototypes

__all__ = [
    "ClientData",
    "FederatedPrototypes",
    "InProcessGrid",
    "Options",
    "PrototypeClient",
    "QuorumGrid",
    "simulate",
]

_HOMES = {
    "ClientData": "client",
    "FederatedPrototypes": "strategy",
    "InProcessGrid": "grid",
    "Options": "options",
    "PrototypeClient": "client",
    "QuorumGrid": "relayed_grids",
    "simulate": "simulation",
}

__getattr__ = importer(__name__, _HOMES)
