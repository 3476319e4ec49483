"""Federations that exchange prototype memories through Flower."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protocl.federation.client import ClientData, PrototypeClient
    from protocl.federation.grid import InProcessGrid, QuorumGrid
    from protocl.federation.simulation import simulate
    from protocl.federation.strategy import FederatedPrototypes, Options

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
    "Options": "strategy",
    "PrototypeClient": "client",
    "QuorumGrid": "grid",
    "simulate": "simulation",
}


def __getattr__(name: str) -> Any:
    # Flower takes most of a second to import; the parts without it do not wait for it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
