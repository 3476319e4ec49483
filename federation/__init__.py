"""Federations that exchange prototype memories through Flower."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocl.lazy import importer

if TYPE_CHECKING:
    from protocl.federation.client.client import ClientData, PrototypeClient
    from protocl.federation.runner.simulation import simulate
    from protocl.federation.server.sampling import Options
    from protocl.federation.server.strategy import FederatedPrototypes
    from protocl.federation.wire.grid import InProcessGrid
    from protocl.federation.wire.limits import Limits
    from protocl.federation.wire.relayed_grids import QuorumGrid

__all__ = [
    "ClientData",
    "FederatedPrototypes",
    "InProcessGrid",
    "Limits",
    "Options",
    "PrototypeClient",
    "QuorumGrid",
    "simulate",
]

_HOMES = {
    "ClientData": "client.client",
    "FederatedPrototypes": "server.strategy",
    "InProcessGrid": "wire.grid",
    "Limits": "wire.limits",
    "Options": "server.sampling",
    "PrototypeClient": "client.client",
    "QuorumGrid": "wire.relayed_grids",
    "simulate": "runner.simulation",
}

__getattr__ = importer(__name__, _HOMES)
