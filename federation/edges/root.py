"""The root of a tree: it adds up what edges send."""

from __future__ import annotations

from pathlib import Path

from protocl.errors import ConfigError
from protocl.federation.config import MethodConfig
from protocl.federation.methods.group_means.fedcof import GroupMeansConfig
from protocl.federation.methods.prototypes import PrototypesConfig
from protocl.federation.server.sampling import Options
from protocl.federation.server.strategy import FederatedPrototypes


def require_addable(config: MethodConfig, edges: int) -> PrototypesConfig:
    """The settings of a method whose edges' memories are sums.

    Raises:
        ConfigError: those of another method.
    """
    if not isinstance(config, PrototypesConfig) or isinstance(config, GroupMeansConfig):
        raise ConfigError(
            f"edges={edges}: method={config.name} has no sums that edges could add up; use "
            "method=prototypes or robust, or edges=0"
        )
    return config


def root_strategy(
    edge: FederatedPrototypes, options: Options, checkpoints: Path | None
) -> FederatedPrototypes:
    """The root's strategy.

    Args:
        edge: the strategy of an edge; what looks at clients side by side stays there.
        options: of the root, with the limits of edges.
        checkpoints: see :class:`.FederatedPrototypes`.
    """
    return FederatedPrototypes(edge.empty, options, checkpoints=checkpoints, rows=True)
