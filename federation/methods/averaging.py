"""Federated averaging: Flower's ``FedAvg`` on the server, local training on the clients."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import cast

import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from protocl.backbones.base import Classifier
from protocl.errors import DataError
from protocl.federation.config import FederationSetup
from protocl.federation.methods.network import (
    GradientConfig,
    arrived,
    client_seed,
    set_weights,
    train,
    weights_of,
)
from protocl.federation.server.sampling import choose_nodes
from protocl.federation.wire.npy import array_of, read_npy
from protocl.federation.wire.replies import reading

logger = logging.getLogger(__name__)

MAX_EXAMPLES = 10**9
"""Samples that one client may say that it trained on."""

MAX_WEIGHT = 1e6
"""Magnitude of a weight beyond which it is no network's: the average would be of it alone."""


class WeightAveraging(FedAvg):
    """Flower's ``FedAvg`` with nodes drawn by seed, and without replies that would spoil it.

    Args:
        setup: of the run.
        size: length of the vector of weights.
    """

    def __init__(self, setup: FederationSetup, size: int) -> None:
        fewest = setup.federation.min_clients
        super().__init__(
            fraction_train=setup.federation.participation,
            min_train_nodes=fewest,
            min_available_nodes=fewest,
        )
        self.seed = setup.seed
        self.size = size

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the averaged weights to some of the nodes online."""
        nodes = choose_nodes(
            grid, server_round, self.fraction_train,
            min_clients=self.min_train_nodes, wait=60.0, seed=self.seed,
        )  # fmt: skip
        config["server-round"] = server_round
        content = RecordDict({"arrays": arrays, "config": config})
        return [
            Message(content, node, MessageType.TRAIN, group_id=str(server_round)) for node in nodes
        ]

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Nobody: the server evaluates."""
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average by number of samples; the weights stay where no client has any."""
        return super().aggregate_train(server_round, [r for r in replies if self._counts(r)])

    def _counts(self, reply: Message) -> bool:
        """Whether a reply can be averaged; then it holds nothing but what is averaged."""
        client = f"what client {reply.metadata.src_node_id} sent"
        if reply.has_error():
            logger.warning("%s: it failed: %s", client, reply.error.reason)
            return False
        with reading(client):
            weights, examples = self._read(reply.content)
            reply.content = RecordDict(
                {
                    "arrays": ArrayRecord({"weights": array_of(weights.numpy())}),
                    "metrics": MetricRecord({"num-examples": examples}),
                }
            )
            return examples > 0
        return False

    def _read(self, content: RecordDict) -> tuple[Tensor, int]:
        weights = read_weights(content.array_records["arrays"])
        # Of NaN the comparison is false.
        if weights.shape != (self.size,) or not bool((weights.abs() <= MAX_WEIGHT).all()):
            raise DataError(
                f"weights of shape {tuple(weights.shape)}: expected {self.size} finite values "
                f"of at most {MAX_WEIGHT:g}"
            )
        examples = content.metric_records["metrics"]["num-examples"]
        if not isinstance(examples, int) or not 0 <= examples <= MAX_EXAMPLES:
            raise DataError(
                f"num-examples={examples!r:.80}: expected a whole number up to {MAX_EXAMPLES}"
            )
        return weights, examples


class WeightClient:
    """Trains the averaged network on the data that has arrived at a client.

    Args:
        setup: of the run.
        network: the architecture; its weights come with every message.
        config: of the local steps.
    """

    def __init__(self, setup: FederationSetup, network: Classifier, config: GradientConfig) -> None:
        self.load = setup.load
        self.network = network
        self.config = config
        self.seed = setup.seed

    def train(self, message: Message, context: Context) -> Message:
        """Local epochs of SGD from the weights received."""
        content = message.content
        number = int(cast(int, content.config_records["config"]["server-round"]))
        set_weights(self.network, read_weights(content.array_records["arrays"]))
        x, y = arrived(self.load, context, number)
        if len(y):
            train(self.network, x, y, self.config, client_seed(self.seed, context, number))
        answer = RecordDict(
            {
                "arrays": weights_record(self.network),
                "metrics": MetricRecord({"num-examples": len(y)}),
            }
        )
        return Message(answer, reply_to=message)


def weights_record(module: nn.Module) -> ArrayRecord:
    """Weights as one array: Flower's cost in a deployment is by array, not by byte."""
    return ArrayRecord({"weights": array_of(weights_of(module).numpy())})


def read_weights(arrays: ArrayRecord) -> Tensor:
    """What :func:`weights_record` made.

    Raises:
        DataError: it is not there, or not a float32 vector.
    """
    if "weights" not in arrays:
        raise DataError(f"no weights among {sorted(arrays)}")
    values = torch.from_numpy(read_npy(arrays["weights"].data).copy())
    if values.dtype != torch.float32:
        raise DataError(f"weights are {values.dtype}; expected float32")
    return values
