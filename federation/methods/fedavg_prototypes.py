"""The method ``fedavg_prototypes``: train by federated averaging, freeze, exchange prototypes.

With ``head=nearest_mean`` it is the baseline "FedAvg and nearest mean"; with another head, a way to
a feature map that no one had beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from protocl.backbones.base import fingerprint
from protocl.backbones.features import extract
from protocl.errors import ConfigError
from protocl.federation.config import FederationSetup, MethodInfo
from protocl.federation.methods.network import GradientConfig, set_weights, weights_of
from protocl.federation.methods.prototypes import ExchangeConfig

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, Context, Message
    from torch import Tensor

    from protocl.federation.server.strategy import FederatedPrototypes
    from protocl.memory import PrototypeMemory


@dataclass
class FedAvgPrototypesConfig(GradientConfig, ExchangeConfig):
    """Clients train one network, which is then frozen under merged prototypes.

    Attributes:
        training_rounds: rounds of federated averaging, fewer than ``rounds``; the rest exchange
            prototypes of the frozen backbone.
        train: ``projection`` or ``backbone``.

    Example:
        >>> from protocl.federation.runner import toy
        >>> toy.learn(FedAvgPrototypesConfig(training_rounds=1))
        1.0
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        title="FedAvg, then prototypes", stored="one network, sums of class statistics"
    )

    name: str = "fedavg_prototypes"
    train: Literal["head", "projection", "backbone"] = "projection"
    training_rounds: int = 3

    def build(self, setup: FederationSetup) -> FedAvgPrototypesMethod:
        """See :class:`protocl.federation.config.MethodConfig`."""
        if self.train == "head":
            raise ConfigError("method.train=head leaves no feature map to freeze; use projection")
        rounds = setup.federation.rounds
        if not 0 < self.training_rounds < rounds:
            raise ConfigError(
                f"method.training_rounds={self.training_rounds}: expected at least 1, and fewer "
                f"than rounds={rounds}, since prototypes are exchanged after them; raise rounds"
            )
        return FedAvgPrototypesMethod(self, setup)


class FedAvgPrototypesMethod:
    """See :class:`protocl.federation.config.Method`."""

    def __init__(self, config: FedAvgPrototypesConfig, setup: FederationSetup) -> None:
        from flwr.clientapp import ClientApp

        from protocl.federation.client.client import PrototypeClient
        from protocl.federation.methods.averaging import (
            WeightAveraging,
            WeightClient,
            weights_record,
        )
        from protocl.federation.methods.train_then_exchange import TrainThenExchange
        from protocl.federation.wire.received_backbone import ReceivedBackbone, without_weights

        self.config = config
        self.setup = setup
        self.head = config.head.build()
        self.network = config.build_network(setup)
        self.strategy = TrainThenExchange(
            WeightAveraging(setup, len(weights_of(self.network))),
            self._freeze,
            config.training_rounds,
        )
        self.initial = weights_record(self.network)
        self.trainer = WeightClient(setup, self.network, config)
        empty = self._empty(None)
        self.exchanger = PrototypeClient(
            setup.load,
            empty,
            states=setup.states,
            backbone=ReceivedBackbone(without_weights(self.network.backbone)),
            head=config.head.build(),
            precision=config.precision,
            sanitise=config.build_sanitise(),
            merged=config.kind_of_merged(empty),
        )
        self.client_app = ClientApp()
        self.client_app.train()(self._train)
        self.client_app.evaluate()(self.exchanger.evaluate)

    @property
    def memory(self) -> PrototypeMemory | None:
        """The merged memory; None while the network is trained."""
        exchange = self.strategy.exchange
        return None if exchange is None else exchange.memory

    def classify(self, arrays: ArrayRecord, x: Tensor) -> Tensor:
        """See :class:`protocl.federation.config.Method`."""
        from protocl.federation.methods.averaging import read_weights

        if self.memory is not None:
            features = extract(self.network.backbone, x, progress=False)
            return self.head.fit(self.memory).predict(features)
        set_weights(self.network, read_weights(arrays))
        return extract(self.network, x, progress=False).argmax(1)

    def resume(self) -> int:
        """See :class:`protocl.federation.config.Method`.

        Raises:
            ConfigError: always; the weights of the first phase are not kept.
        """
        raise ConfigError("resume=true: method=fedavg_prototypes keeps no checkpoints; run it anew")

    def _train(self, message: Message, context: Context) -> Message:
        trains = "arrays" in message.content.array_records
        return (self.trainer if trains else self.exchanger).train(message, context)

    def _freeze(self, weights: Tensor) -> FederatedPrototypes:
        from protocl.federation.server.strategy import FederatedPrototypes

        set_weights(self.network, weights)
        backbone = self.network.backbone
        return FederatedPrototypes(
            self._empty(fingerprint(backbone)), self.setup.options(),
            merge=self.config.build_merge(), backbone=backbone,
        )  # fmt: skip

    def _empty(self, backbone_fingerprint: str | None) -> PrototypeMemory:
        config = self.config
        width = config.width if config.train == "projection" else self.setup.feature_dim
        return config.build_empty(self.head, width, backbone_fingerprint)
