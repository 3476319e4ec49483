"""Settings of a federation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocl.lazy import importer

if TYPE_CHECKING:
    from protocl.federation.config.schema import (
        FederateConfig,
        FederationConfig,
        FederationSetup,
        Method,
        MethodConfig,
        MethodInfo,
    )

__all__ = [
    "FederateConfig",
    "FederationConfig",
    "FederationSetup",
    "Method",
    "MethodConfig",
    "MethodInfo",
]

__getattr__ = importer(__name__, dict.fromkeys(__all__, "schema"))
