"""The method ``prototypes``: exact merging of statistics, with any head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from protocl.backbones.features import extract
from protocl.config.validation import AT_LEAST_0, POSITIVE, ranged
from protocl.errors import ConfigError
from protocl.federation.config import FederationSetup, MethodConfig, MethodInfo
from protocl.federation.methods.head_settings import HeadSettings
from protocl.federation.wire.codec import Precision
from protocl.memory.estimates.low_rank import low_rank_kind

if TYPE_CHECKING:
    from flwr.app import ArrayRecord
    from torch import Tensor

    from protocl.federation.client.client import Sanitise
    from protocl.federation.server.strategy import FederatedPrototypes, Merge, Screen
    from protocl.heads.base import Head
    from protocl.memory import PrototypeMemory
    from protocl.model.answers import Answering


@dataclass
class HeadConfig(HeadSettings, MethodConfig):
    """Settings of a method whose memory a head classifies with."""

    def beside(self, exact: PrototypeMemory) -> PrototypeMemory:
        """What the merged memory is compared with, of the statistics of all samples."""
        return exact


@dataclass
class ExchangeConfig(HeadConfig):
    """Settings of a method whose clients send statistics in the clear.

    Attributes:
        exact: merge in fixed point, so that the result does not depend on any order by a bit.
        step: quantisation step of fixed point.
        precision: of what clients send: ``exact``, ``float32``, ``float16`` or ``int8``.
    """

    exact: bool = True
    step: float = ranged(2.0**-16, POSITIVE)
    precision: Precision = "exact"

    def build_merge(self) -> Merge | None:
        """How the clients' sums are merged; None for the exact sum."""
        return None

    def build_sanitise(self) -> Sanitise | None:
        """What changes samples and labels before a client counts them; nothing here."""
        return None

    def build_empty(self, head: Head, width: int, fingerprint: str | None) -> PrototypeMemory:
        """A memory without samples of the kind that clients send, of features ``(N, width)``."""
        return head.new_memory(width, exact=self.exact, step=self.step, fingerprint=fingerprint)

    def kind_of_merged(self, empty: PrototypeMemory) -> PrototypeMemory:
        """A memory of the kind that merging those like ``empty`` gives, for clients that answer."""
        return empty


@dataclass
class PrototypesConfig(ExchangeConfig):
    """The server adds the class statistics of all clients, exactly, under any head.

    Settings of :class:`FederatedPrototypes`, besides those of the exchange.

    Attributes:
        keep_contributions: keep each client's sum on the server, so that it can be forgotten, and
            replaced: without it a client that must send everything again (after a restore, as
            another node, after eight unanswered contributions) is refused from then on.
        rank: 0, or the eigenpairs of the second moment within classes that a client sends in its
            place, with the trace of the others; an estimate, with ``exact=false``.
        distribute: the server sends the backbone first; clients check its hash, then encode their
            samples with it.

    Example:
        >>> from protocl.federation.runner import toy
        >>> toy.learn(PrototypesConfig())  # accuracy after two rounds of five clients
        1.0
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        title="Federated prototypes", stored="sums of the clients' class statistics"
    )
    deployable: ClassVar[bool] = True

    name: str = "prototypes"
    keep_contributions: bool = True
    distribute: bool = False
    rank: int = ranged(0, AT_LEAST_0)

    @property
    def needs_samples(self) -> bool:
        """See :class:`protocl.federation.config.MethodConfig`."""
        return self.distribute

    def build(self, setup: FederationSetup) -> PrototypesMethod:
        """See :class:`protocl.federation.config.MethodConfig`."""
        _require_low_rank(self)
        return PrototypesMethod(self, setup)

    def kind_of_merged(self, empty: PrototypeMemory) -> PrototypeMemory:
        """See :class:`ExchangeConfig`."""
        return low_rank_kind(empty, self.rank) if self.rank else empty

    def build_screen(self) -> Screen | None:
        """What looks at the contributions of a round; nothing here."""
        return None


def _require_low_rank(config: PrototypesConfig) -> None:
    """Refuse settings beside which no second moment of low rank can be merged.

    Raises:
        ConfigError: sums are in fixed point or rounded, or the head takes no shared second moment,
            or is to choose its own strength.
    """
    if not config.rank:
        return
    if config.exact or config.precision != "exact":
        raise ConfigError(
            f"method.rank={config.rank} rounds eigenpairs, which have no place among exact or "
            "otherwise rounded sums: use method.exact=false method.precision=exact"
        )
    if config.head.build().required_level != "shared":
        raise ConfigError(
            f"method.rank={config.rank}: method.head={config.head.name} takes no second moment "
            "that classes share; use ridge with a given regularization, or lda, or method.rank=0"
        )
    config.require_given_strength()


class PrototypesMethod:
    """See :class:`protocl.federation.config.Method`."""

    def __init__(self, config: PrototypesConfig, setup: FederationSetup) -> None:
        from flwr.app import ArrayRecord

        from protocl.federation.client.client import PrototypeClient
        from protocl.federation.server.strategy import FederatedPrototypes
        from protocl.federation.wire.received_backbone import ReceivedBackbone, without_weights

        self.backbone = setup.backbone if config.distribute else None
        self.head, self.rank = config.head.build(), config.rank
        empty = config.build_empty(self.head, setup.feature_dim, setup.fingerprint)
        self.strategy: FederatedPrototypes = FederatedPrototypes(
            config.kind_of_merged(empty) if config.rank else empty,
            setup.options(),
            keep_contributions=config.keep_contributions,
            checkpoints=setup.checkpoints,
            screen=config.build_screen(),
            merge=config.build_merge(),
            backbone=self.backbone,
            door=setup.door,
        )
        self.client = PrototypeClient(
            setup.load,
            empty,
            states=setup.states,
            backbone=ReceivedBackbone(without_weights(self.backbone)) if self.backbone else None,
            head=config.head.build(),
            precision=config.precision,
            rank=config.rank,
            sanitise=config.build_sanitise(),
            merged=config.kind_of_merged(empty),
        )
        self.client_app = self.client.app()
        self.initial: ArrayRecord = ArrayRecord()

    @property
    def memory(self) -> PrototypeMemory:
        """The merged memory."""
        return self.strategy.memory

    def classify(self, arrays: ArrayRecord, x: Tensor) -> Tensor:
        """See :class:`protocl.federation.config.Method`."""
        features = x if self.backbone is None else extract(self.backbone, x, progress=False)
        return self.head.fit(self.memory).predict(features)

    def final_answer(self) -> Answering:
        """What a model on disk keeps of it: it answers on the features of the frozen backbone."""
        return self.head, self.memory

    def resume(self) -> int:
        """See :class:`protocl.federation.config.Method`.

        Raises:
            ConfigError: the simulated clients' states are gone and cannot be replaced, or what
                replaces them is rounded otherwise than they were.
        """
        if not self.strategy.resume():
            return 0
        if self.rank:
            raise ConfigError(
                f"resume=true: with method.rank={self.rank} clients would now send one moment of "
                "low rank of all their samples in place of one a round, and the run would end "
                "otherwise than without the interruption; run it anew"
            )
        if not self.strategy.merged.keep_contributions:
            raise ConfigError(
                "resume=true needs method.keep_contributions=true: the clients were in the "
                "process that ended, and what they send now must replace what they sent"
            )
        return self.strategy.round
