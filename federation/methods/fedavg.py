"""The baseline ``fedavg``: a network trained by federated averaging.

Flower's own ``FedAvg`` averages; a client takes local steps of SGD on the cross-entropy from the
averaged weights. McMahan et al., "Communication-efficient learning of deep networks from
decentralized data", AISTATS 2017, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from protocl.backbones.features import extract
from protocl.errors import ConfigError
from protocl.federation.config import FederationSetup, MethodInfo
from protocl.federation.methods.network import GradientConfig, set_weights, weights_of

if TYPE_CHECKING:
    from flwr.app import ArrayRecord

    from protocl.model.answers import Answering


@dataclass
class FedAvgConfig(GradientConfig):
    """Clients train one network, whose weights the server averages.

    Example:
        >>> from protocl.federation.runner import toy
        >>> toy.learn(FedAvgConfig(local_epochs=5))  # accuracy after two rounds of five clients
        1.0
    """

    info: ClassVar[MethodInfo] = MethodInfo(title="FedAvg", stored="one network")

    name: str = "fedavg"

    @property
    def title(self) -> str:
        """See :class:`protocl.federation.config.MethodConfig`."""
        trained = {"head": "linear head", "backbone": "whole network"}
        return f"{self.info.title}, {trained.get(self.train, self.train)}"

    def build(self, setup: FederationSetup) -> FedAvgMethod:
        """See :class:`protocl.federation.config.MethodConfig`."""
        return FedAvgMethod(self, setup)


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
        self.strategy = WeightAveraging(setup, len(weights_of(self.network)))
        self.initial = weights_record(self.network)
        self.client_app = ClientApp()
        self.client_app.train()(WeightClient(setup, self.network, config).train)

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
