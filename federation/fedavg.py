"""The baseline ``fedavg``: a linear layer on the features, trained by federated averaging.

Flower's own ``FedAvg`` averages; a client takes local steps of SGD on the cross-entropy from the
averaged weights. McMahan et al., "Communication-efficient learning of deep networks from
decentralized data", AISTATS 2017, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from protocl.errors import ConfigError
from protocl.federation.config import FederationSetup, MethodConfig, MethodInfo

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, Context, Message

    from protocl.federation.client import Loader


@dataclass
class LocalSteps:
    """Settings of a client's training.

    Attributes:
        local_epochs: passes over the client's data in each round.
        batch_size: samples in a mini-batch.
        lr: learning rate of SGD.
        momentum: its momentum, forgotten after each round.
        weight_decay: its L2 penalty.
    """

    local_epochs: int = 1
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ConfigError: a number is not positive.
        """
        for key in ("local_epochs", "batch_size", "lr"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"method.{key}={getattr(self, key)}: expected a number > 0")


@dataclass
class FedAvgConfig(LocalSteps, MethodConfig):
    """Settings of federated averaging."""

    info: ClassVar[MethodInfo] = MethodInfo(title="FedAvg, linear head", stored="one linear layer")

    name: str = "fedavg"

    def build(self, setup: FederationSetup) -> FedAvgMethod:
        """See :class:`protocl.federation.config.MethodConfig`."""
        self.check()
        return FedAvgMethod(self, setup)


class FedAvgMethod:
    """See :class:`protocl.federation.config.Method`."""

    memory = None

    def __init__(self, config: FedAvgConfig, setup: FederationSetup) -> None:
        from flwr.app import Array, ArrayRecord
        from flwr.clientapp import ClientApp
        from flwr.serverapp.strategy import FedAvg

        federation = setup.federation
        fewest = max(federation.min_clients, 1)
        self.strategy = FedAvg(
            fraction_train=federation.participation,
            fraction_evaluate=0.0,
            min_train_nodes=fewest,
            min_available_nodes=fewest,
        )
        # Zeros: every class has the same logit, and no client's draw matters.
        self.initial = ArrayRecord(
            {
                "weight": Array(torch.zeros(setup.n_classes, setup.feature_dim).numpy()),
                "bias": Array(torch.zeros(setup.n_classes).numpy()),
            }
        )
        self.client_app = ClientApp()
        self.client_app.train()(LinearClient(setup.load, config, setup.seed).train)

    def classify(self, arrays: ArrayRecord, features: Tensor) -> Tensor:
        """See :class:`protocl.federation.config.Method`."""
        weight, bias = (torch.from_numpy(arrays[name].numpy()) for name in ("weight", "bias"))
        return functional.linear(features.float(), weight, bias).argmax(1)

    def resume(self) -> int:
        """See :class:`protocl.federation.config.Method`.

        Raises:
            ConfigError: always; the weights of the baseline are not kept.
        """
        raise ConfigError("resume=true: method=fedavg keeps no checkpoints; run it anew")


class LinearClient:
    """Trains the averaged layer on the data that has arrived at a client.

    Args:
        load: gives the client's features.
        config: of the local steps.
        seed: of the order of the samples.
    """

    def __init__(self, load: Loader, config: FedAvgConfig, seed: int) -> None:
        self.load = load
        self.config = config
        self.seed = seed

    def train(self, message: Message, context: Context) -> Message:
        """Local epochs of SGD from the weights received."""
        from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

        received = message.content.array_records["arrays"]
        number = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
        weights = [
            torch.from_numpy(received[name].numpy()).requires_grad_() for name in ("weight", "bias")
        ]
        chunks = [c for c in self.load(context).chunks[:number] if len(c[1])]
        samples = sum(len(y) for _, y in chunks)
        if chunks:
            x, y = (torch.cat(parts) for parts in zip(*chunks, strict=True))
            seed = hash((self.seed, int(context.node_config.get("partition-id", 0)), number))
            generator = torch.Generator().manual_seed(abs(seed))
            descend(self.config, weights, x.float(), y, generator)
        arrays = {
            name: Array(weight.detach().numpy())
            for name, weight in zip(("weight", "bias"), weights, strict=True)
        }
        content = RecordDict(
            {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": samples})}
        )
        return Message(content, reply_to=message)


def descend(
    config: LocalSteps, weights: list[Tensor], x: Tensor, y: Tensor, generator: torch.Generator
) -> None:
    """Local epochs of SGD on the cross-entropy of a linear layer, in place.

    Args:
        config: number of epochs, size of a batch, optimizer.
        weights: weight ``(C, D)`` and bias ``(C,)``, which require gradients.
        x, y: features ``(N, D)`` and class ids ``(N,)``.
        generator: decides the order of the samples.
    """
    optimizer = torch.optim.SGD(
        weights, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    for _ in range(config.local_epochs):
        for rows in torch.randperm(len(y), generator=generator).split(config.batch_size):
            optimizer.zero_grad()
            functional.cross_entropy(functional.linear(x[rows], *weights), y[rows]).backward()
            optimizer.step()
