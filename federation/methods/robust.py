"""The method ``robust``: prototypes merged under doubt about some of the clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from protocl.errors import ConfigError, as_config_error
from protocl.federation.config import FederationSetup, MethodInfo
from protocl.federation.methods.prototypes import PrototypesConfig, PrototypesMethod
from protocl.federation.robust.rules import ConsistencyScreen, RobustMerge


@dataclass
class RobustPrototypesConfig(PrototypesConfig):
    """The server merges statistics under the doubt that some clients lie.

    Settings beside those of ``prototypes``.

    Attributes:
        centre: ``mean``, ``trimmed_mean`` or ``geometric_median`` of the clients' class means;
            ``exact`` for the exact sum of what the screen lets pass, which serves every head.
        trim, max_norm, max_count, min_consistency, share_votes: see
            :class:`protocl.federation.robust.rules.RobustMerge`; not with ``centre=exact``.
        screen: contributions of a round that score less in consistency are rejected, 0 for none.

    Example:
        >>> from protocl.federation.runner import toy
        >>> toy.learn(RobustPrototypesConfig())  # accuracy after two rounds of five clients
        1.0
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        title="Robust federated prototypes", stored="sums of each client's class statistics"
    )

    name: str = "robust"
    centre: Literal["mean", "trimmed_mean", "geometric_median", "exact"] = "geometric_median"
    trim: float = 0.3
    max_norm: float = 0.0
    max_count: float = 0.0
    min_consistency: float = 0.0
    share_votes: bool = False
    screen: float = 0.0

    def build(self, setup: FederationSetup) -> PrototypesMethod:
        """See :class:`protocl.federation.config.MethodConfig`."""
        if not self.keep_contributions:
            raise ConfigError(
                "method.keep_contributions=false: robust merging looks at clients side by side"
            )
        if self.centre != "exact" and self.head.build().required_level != "mean":
            raise ConfigError(
                f"method.head={self.head.name} needs second moments, which "
                f"method.centre={self.centre} does not give; use method.head=nearest_mean, or "
                "method.centre=exact with a screen"
            )
        return super().build(setup)

    def build_merge(self) -> RobustMerge | None:
        """The rule, or None for the exact sum.

        Raises:
            ConfigError: a value is out of range.
        """
        if self.centre == "exact":
            return None
        with as_config_error("method."):
            return RobustMerge(
                self.centre,
                trim=self.trim,
                max_norm=self.max_norm,
                max_count=self.max_count,
                min_consistency=self.min_consistency,
                share_votes=self.share_votes,
            )

    def build_screen(self) -> ConsistencyScreen | None:
        """The screen, or None without one.

        Raises:
            ConfigError: the minimum is out of range.
        """
        with as_config_error("method.screen: "):
            return ConsistencyScreen(self.screen) if self.screen else None
