"""The root of a tree: it adds up what edges send."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from protocl.errors import ConfigError
from protocl.federation.config import MethodConfig
from protocl.federation.methods.group_means.fedcof import GroupMerge
from protocl.federation.methods.prototypes import PrototypesConfig
from protocl.federation.server.sampling import Options
from protocl.federation.server.strategy import FederatedPrototypes


def require_addable(config: MethodConfig, edges: int) -> PrototypesConfig:
    """The settings of a method whose edges' memories are sums.

    Raises:
        ConfigError: those of another method.
    """
    if not isinstance(config, PrototypesConfig):
        raise ConfigError(
            f"edges={edges}: method={config.name} has no sums that edges could add up; use "
            "method=prototypes, robust or fedcof, or edges=0"
        )
    return config


def root_strategy(
    edge: FederatedPrototypes, options: Options, checkpoints: Path | None
) -> FederatedPrototypes:
    """The root's strategy.

    Args:
        edge: the strategy of a server of the method; what looks at clients side by side stays
            at the edges.
        options: of the root, with the limits of edges.
        checkpoints: see :class:`.FederatedPrototypes`.
    """
    if not isinstance(edge.merge, GroupMerge):
        return FederatedPrototypes(edge.empty, options, checkpoints=checkpoints, rows=True)
    sums, most = edge.merge.sums, options.limits.max_classes_in_all
    twice = min(sums.means * options.limits.max_classes, most)  # ids
    return FederatedPrototypes(
        sums.kind(edge.empty), replace(options, limits=replace(options.limits, max_classes=twice)),
        checkpoints=checkpoints, rows=True, estimate=edge.merge.of_sums, means=sums.means,
    )  # fmt: skip
