"""The method ``prototypes``: exact merging of statistics, with any head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from protocl.backbones.features import extract
from protocl.config.validation import POSITIVE, ranged
from protocl.errors import ConfigError
from protocl.federation.config import FederationSetup, MethodConfig, MethodInfo
from protocl.federation.methods.head_settings import HeadSettings
from protocl.federation.wire.codec import Precision

if TYPE_CHECKING:
    from flwr.app import ArrayRecord
    from torch import Tensor

    from protocl.federation.server.strategy import FederatedPrototypes, Merge, Screen
    from protocl.memory import PrototypeMemory
    from protocl.model.answers import Answering


@dataclass
class HeadConfig(HeadSettings, MethodConfig):
    """Settings of a method whose memory a head classifies with."""


@dataclass
class PrototypesConfig(HeadConfig):
    """The server adds the class statistics of all clients, exactly (:class:`FederatedPrototypes`).

    Attributes:
        exact: merge in fixed point, so that the result does not depend on any order by a bit.
        step: quantisation step of fixed point.
        precision: of what clients send: ``exact``, ``float32``, ``float16`` or ``int8``.
        keep_contributions: keep each client's sum on the server, so that it can be forgotten.
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
    exact: bool = True
    step: float = ranged(2.0**-16, POSITIVE)
    precision: Precision = "exact"
    keep_contributions: bool = True
    distribute: bool = False

    @property
    def needs_samples(self) -> bool:
        """See :class:`protocl.federation.config.MethodConfig`."""
        return self.distribute

    def build(self, setup: FederationSetup) -> PrototypesMethod:
        """See :class:`protocl.federation.config.MethodConfig`."""
        return PrototypesMethod(self, setup)

    def build_screen(self) -> Screen | None:
        """What looks at the contributions of a round; nothing here."""
        return None

    def build_merge(self) -> Merge | None:
        """How the clients' sums are merged; None for the exact sum."""
        return None


class PrototypesMethod:
    """See :class:`protocl.federation.config.Method`."""

    def __init__(self, config: PrototypesConfig, setup: FederationSetup) -> None:
        from flwr.app import ArrayRecord

        from protocl.federation.client.client import PrototypeClient
        from protocl.federation.server.strategy import FederatedPrototypes
        from protocl.federation.wire.received_backbone import ReceivedBackbone, without_weights

        self.backbone = setup.backbone if config.distribute else None
        self.head = config.head.build()
        empty = self.head.new_memory(
            setup.feature_dim, exact=config.exact, step=config.step, fingerprint=setup.fingerprint
        )
        self.strategy: FederatedPrototypes = FederatedPrototypes(
            empty,
            setup.options(),
            keep_contributions=config.keep_contributions,
            checkpoints=setup.checkpoints,
            screen=config.build_screen(),
            merge=config.build_merge(),
            backbone=self.backbone,
        )
        self.client = PrototypeClient(
            setup.load,
            empty,
            states=setup.states,
            backbone=ReceivedBackbone(without_weights(self.backbone)) if self.backbone else None,
            head=config.head.build(),
            precision=config.precision,
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
            ConfigError: the simulated clients' states are gone and cannot be replaced.
        """
        if not self.strategy.resume():
            return 0
        if not self.strategy.merged.keep_contributions:
            raise ConfigError(
                "resume=true needs method.keep_contributions=true: the clients were in the "
                "process that ended, and what they send now must replace what they sent"
            )
        return self.strategy.round
