"""The client's side of FedProto: a network of its own, drawn to the common prototypes."""

from __future__ import annotations

from typing import cast

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor
from torch.nn import functional

from protocl.backbones.base import Classifier
from protocl.backbones.features import extract
from protocl.federation.client.client import ClientData
from protocl.federation.config import FederationSetup
from protocl.federation.methods.averaging import read_weights, weights_record
from protocl.federation.methods.fedproto import FedProtoConfig
from protocl.federation.methods.network import Penalty, arrived, client_seed, set_weights, train
from protocl.federation.wire.limits import Limits
from protocl.federation.wire.messages import Contribution, decode, encode
from protocl.federation.wire.npy import array_of
from protocl.heads import NearestMean
from protocl.memory import PrototypeMemory
from protocl.metrics.confusion import Confusion


class FedProtoClient:
    """Answers the messages of :class:`protocl.federation.methods.fedproto_strategy.FedProto`.

    The client's network lives in Flower's persistent client state.

    Args:
        setup: of the run.
        network: the architecture, with the weights that every client starts from.
        width: of the embeddings.
        config: of the local steps.
    """

    def __init__(
        self, setup: FederationSetup, network: Classifier, width: int, config: FedProtoConfig
    ) -> None:
        self.setup = setup
        self.network = network
        self.config = config
        self.empty = PrototypeMemory(width)
        self._initial = weights_record(network)

    def app(self) -> ClientApp:
        """The ClientApp."""
        app = ClientApp()
        app.train()(self.train)
        app.evaluate()(self.evaluate)
        return app

    def train(self, message: Message, context: Context) -> Message:
        """Local epochs towards the prototypes received, then the prototypes of this client."""
        number = int(cast(int, message.content.config_records["config"]["round"]))
        prototypes = self._receive(message)
        self._restore(context)
        x, y = arrived(self.setup.load, context, number)
        content = RecordDict({"metrics": MetricRecord({"num-examples": len(y)})})
        if len(y):
            seed = client_seed(self.setup.seed, context, number)
            train(self.network, x, y, self.config, seed, penalty(prototypes, self.config.weight))
            context.state["network"] = weights_record(self.network)
            embedded = extract(self.network.backbone, x, progress=False)
            statistics = self.empty.empty_like().update(embedded, y)
            content["arrays-0"], content["header-0"] = encode(
                Contribution(statistics, "", number, "full"), "float32"
            )
        return Message(content, reply_to=message)

    def evaluate(self, message: Message, context: Context) -> Message:
        """Classify the client's test data with its own network."""
        prototypes = self._receive(message)
        self._restore(context)
        confusion = self._confusion(self.setup.load(context), prototypes)
        pairs = torch.stack([confusion.true, confusion.predicted, confusion.counts])
        content = RecordDict(
            {
                "confusion": ArrayRecord({"pairs": array_of(pairs.numpy())}),
                "metrics": MetricRecord({"num-examples": confusion.total}),
            }
        )
        return Message(content, reply_to=message)

    def _confusion(self, data: ClientData, prototypes: PrototypeMemory) -> Confusion:
        if data.test is None or not len(data.test[1]):
            return Confusion.empty()
        x, y = data.test
        if self.config.answer == "classifier":
            answers = extract(self.network, x, progress=False).argmax(1)
        else:
            known = prototypes.classes[torch.isin(prototypes.classes, y)]
            head = NearestMean().fit(prototypes.subset(known.tolist()))
            answers = head.predict(extract(self.network.backbone, x, progress=False))
        return Confusion.from_predictions(y, answers)

    def _receive(self, message: Message) -> PrototypeMemory:
        content = message.content
        if "memory" not in content.array_records:  # before the first answers
            return self.empty.empty_like()
        arrays, header = content.array_records["memory"], content.config_records["header"]
        return decode(arrays, header, self.empty, Limits.of_sum()).memory

    def _restore(self, context: Context) -> None:
        kept = context.state.array_records.get("network", self._initial)
        set_weights(self.network, read_weights(kept))


def penalty(prototypes: PrototypeMemory, weight: float) -> Penalty | None:
    """The mean squared distance of embeddings to their classes' prototypes, times ``weight``.

    As in the released code, the mean is over the mini-batch and the dimensions, and samples of
    classes without a prototype count as distance zero.
    """
    if not len(prototypes):
        return None
    classes, means = prototypes.classes, prototypes.means.float()

    def distance(embedded: Tensor, labels: Tensor) -> Tensor:
        rows = torch.searchsorted(classes, labels).clamp(max=len(classes) - 1)
        known = classes[rows] == labels
        target = torch.where(known[:, None], means[rows], embedded.detach())
        return weight * functional.mse_loss(embedded, target)

    return distance
