"""The baseline ``fedavg``: a network trained by federated averaging.

Flower's own ``FedAvg`` averages; a client takes local steps of SGD on the cross-entropy from the
averaged weights. McMahan et al., "Communication-efficient learning of deep networks from
decentralized data", AISTATS 2017, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from torch import Tensor, nn

from protocl.backbones.features import extract
from protocl.errors import ConfigError
from protocl.federation.config import FederationSetup, MethodInfo
from protocl.federation.methods.network import GradientConfig, set_weights, weights_of

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, Context, Message
    from flwr.serverapp.strategy import Strategy

    from protocl.memory import PrototypeMemory
    from protocl.model.answers import Answering


@dataclass
class FedAvgConfig(GradientConfig):
    """Clients train one network, whose weights the server averages.

    Attributes:
        initialize: ``none``, or the head whose layer is fitted to statistics that the first round
            collects, and averaged from then on: ``nearest_mean`` (FedNCM), ``lda``, ``ridge``
            (Fed3R) or ``fedcof``. With ``train=head``; a rate that suits a start from zero destroys
            a good one: give ``lr=0.01``.

    Example:
        >>> from protocl.federation.runner import toy
        >>> toy.learn(FedAvgConfig(local_epochs=5))  # accuracy after two rounds of five clients
        1.0
    """

    info: ClassVar[MethodInfo] = MethodInfo(title="FedAvg", stored="one network")

    name: str = "fedavg"
    initialize: Literal["none", "nearest_mean", "lda", "ridge", "fedcof"] = "none"

    @property
    def title(self) -> str:
        """See :class:`protocl.federation.config.MethodConfig`."""
        trained = {"head": "linear head", "backbone": "whole network"}
        start = "" if self.initialize == "none" else f" from {self.initialize}"
        return f"{self.info.title}, {trained.get(self.train, self.train)}{start}"

    def build(self, setup: FederationSetup) -> FedAvgMethod:
        """See :class:`protocl.federation.config.MethodConfig`."""
        if self.initialize == "none":
            return FedAvgMethod(self, setup)
        if self.train != "head" or setup.federation.rounds < 2:
            raise ConfigError(
                f"method.initialize={self.initialize} fits a linear layer in the first round, and "
                "the others train it: use method.train=head and rounds=2 or more, not "
                f"method.train={self.train} and rounds={setup.federation.rounds}"
            )
        return InitializedFedAvg(self, setup)


class FedAvgMethod:
    """See :class:`protocl.federation.config.Method`."""

    memory = None

    def __init__(self, config: FedAvgConfig, setup: FederationSetup) -> None:
        from flwr.clientapp import ClientApp

        from protocl.federation.methods.averaging import (
            WeightAveraging,
            WeightClient,
            weights_record,
        )

        self._projects = config.train == "projection"
        self.network = config.build_network(setup)
        self.averaging = WeightAveraging(setup, len(weights_of(self.network)))
        self.strategy: Strategy = self.averaging
        self.initial = weights_record(self.network)
        self.client_app = ClientApp()
        self.trainer = WeightClient(setup, self.network, config)
        self.client_app.train()(self._train)

    def _train(self, message: Message, context: Context) -> Message:
        return self.trainer.train(message, context)

    def classify(self, arrays: ArrayRecord, x: Tensor) -> Tensor:
        """See :class:`protocl.federation.config.Method`."""
        from protocl.federation.methods.averaging import read_weights

        set_weights(self.network, read_weights(arrays))
        return extract(self.network, x, progress=False).argmax(1)

    def final_answer(self) -> Answering | None:
        """What a model on disk keeps of it; None for a projection, which no backbone holds."""
        from protocl.model.answers import LinearAnswer

        layer = self.network.classifier
        return (
            LinearAnswer.of(layer) if isinstance(layer, nn.Linear) and not self._projects else None
        )

    def resume(self) -> int:
        """See :class:`protocl.federation.config.Method`.

        Raises:
            ConfigError: always; the weights of the baseline are not kept.
        """
        raise ConfigError("resume=true: method=fedavg keeps no checkpoints; run it anew")


class InitializedFedAvg(FedAvgMethod):
    """Averaging that starts from a head's layer; see :class:`protocl.federation.config.Method`."""

    def __init__(self, config: FedAvgConfig, setup: FederationSetup) -> None:
        from protocl.federation.client.client import PrototypeClient
        from protocl.federation.methods.exchange_then_train import (
            HEADS,
            MERGES,
            ExchangeThenTrain,
        )
        from protocl.federation.server.strategy import FederatedPrototypes

        super().__init__(config, setup)
        self.start = config.initialize
        merge = MERGES.get(config.initialize)
        empty = HEADS[config.initialize]().new_memory(
            setup.feature_dim, level="mean" if merge else None, exact=True,
            fingerprint=setup.fingerprint,
        )  # fmt: skip
        exchange = FederatedPrototypes(empty, setup.options(), merge=merge)
        self.strategy = ExchangeThenTrain(exchange, self.averaging, self._begin)
        self.exchanger = PrototypeClient(setup.load, empty, states=setup.states)

    def _begin(self, memory: PrototypeMemory) -> ArrayRecord:
        from protocl.federation.methods.averaging import weights_record
        from protocl.federation.methods.exchange_then_train import write_layer

        write_layer(cast(nn.Linear, self.network.classifier), self.start, memory)
        return weights_record(self.network)

    def _train(self, message: Message, context: Context) -> Message:
        trains = "arrays" in message.content.array_records
        return (self.trainer if trains else self.exchanger).train(message, context)
