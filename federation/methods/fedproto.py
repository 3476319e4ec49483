"""The method ``fedproto``: every client trains a network of its own towards common prototypes.

Tan et al., "FedProto: Federated prototype learning across heterogeneous clients", AAAI 2022. Only
prototypes travel. There is no common network: what is measured is each client's accuracy on test
data of its own classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from protocl.config.validation import NOT_NEGATIVE, ranged
from protocl.errors import ConfigError
from protocl.federation.config import FederationSetup, MethodInfo
from protocl.federation.methods.network import GradientConfig

if TYPE_CHECKING:
    from flwr.app import ArrayRecord
    from torch import Tensor

    from protocl.metrics.confusion import Confusion


@dataclass
class FedProtoConfig(GradientConfig):
    """Each client trains a network of its own towards common prototypes.

    Attributes:
        aggregation: of a class's prototypes over its owners: ``uniform``, as in the released code;
            ``count``, weighted by samples. (The paper's formula divides the weighted mean by the
            number of owners once more, which would shrink it.)
        weight: of the squared distance to the prototypes, lambda in the paper.
        answer: ``prototypes``, the nearest prototype among the client's classes; ``classifier``,
            the client's own linear layer.

    Example:
        >>> from protocl.federation.runner import toy
        >>> toy.learn(FedProtoConfig())  # accuracy after two rounds of five clients
        1.0
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        title="FedProto (each client on its own classes)", stored="one prototype a class"
    )
    personal: ClassVar[bool] = True

    name: str = "fedproto"
    train: Literal["head", "projection", "backbone"] = "projection"
    aggregation: Literal["uniform", "count"] = "uniform"
    weight: float = ranged(1.0, NOT_NEGATIVE)
    answer: Literal["prototypes", "classifier"] = "prototypes"

    def build(self, setup: FederationSetup) -> FedProtoMethod:
        """See :class:`protocl.federation.config.MethodConfig`."""
        if self.train == "head":
            raise ConfigError("method.train=head has nothing to draw to prototypes; use projection")
        return FedProtoMethod(self, setup)


class FedProtoMethod:
    """See :class:`protocl.federation.config.Method`."""

    memory = None

    def __init__(self, config: FedProtoConfig, setup: FederationSetup) -> None:
        from flwr.app import ArrayRecord

        from protocl.federation.methods.fedproto_client import FedProtoClient
        from protocl.federation.methods.fedproto_strategy import FedProto

        network = config.build_network(setup)
        width = config.width if config.train == "projection" else setup.feature_dim
        self.strategy = FedProto(width, setup.options(), config.aggregation)
        self.client_app = FedProtoClient(setup, network, width, config).app()
        self.initial = ArrayRecord()

    @property
    def personal_evaluations(self) -> dict[int, Confusion]:
        """Round -> over the own test data of those clients that answered."""
        return self.strategy.evaluations

    def classify(self, arrays: ArrayRecord, x: Tensor) -> Tensor:
        """See :class:`protocl.federation.config.Method`.

        Raises:
            ConfigError: always; there is no common model.
        """
        raise ConfigError("method=fedproto has no common model; see its personal_evaluations")

    def resume(self) -> int:
        """See :class:`protocl.federation.config.Method`.

        Raises:
            ConfigError: always; the clients' networks are gone with the process.
        """
        raise ConfigError("resume=true: method=fedproto keeps no checkpoints; run it anew")
