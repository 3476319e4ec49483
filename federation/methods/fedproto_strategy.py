"""The server's side of FedProto: one prototype a class, averaged over its owners."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from protocl.federation.server.sampling import Options, choose_nodes
from protocl.federation.wire.messages import Contribution, decode, encode
from protocl.federation.wire.replies import content_of, read_confusion, read_headers, reading
from protocl.memory import PrototypeMemory
from protocl.metrics.confusion import Confusion

logger = logging.getLogger(__name__)


class FedProto(Strategy):
    """Averages the prototypes of the clients that answered; other classes keep their last one.

    Args:
        width: of the embeddings.
        options: how a round is conducted; every client asked to train is asked to evaluate.
        aggregation: ``uniform`` or ``count``.

    Attributes:
        prototypes: a memory with one entry a class, the prototype.
        evaluations: round -> confusion over the clients' own test data.
        round: number of rounds done.
    """

    def __init__(self, width: int, options: Options, aggregation: str) -> None:
        self.options = options
        self.aggregation = aggregation
        self.prototypes = PrototypeMemory(width)
        self.evaluations: dict[int, Confusion] = {}
        self.round = 0
        self._nodes: list[int] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the prototypes to some of the nodes online."""
        options = self.options
        self.round = server_round
        self._nodes = choose_nodes(
            grid, server_round, options.participation,
            min_clients=options.min_clients, wait=options.wait, seed=options.seed,
        )  # fmt: skip
        return self._messages(MessageType.TRAIN, server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average, in the order of nodes."""
        ordered = sorted(replies, key=lambda reply: reply.metadata.src_node_id)
        received = [memory for reply in ordered if (memory := self._read(reply)) is not None]
        self.prototypes = average(received, self.prototypes, self.aggregation)
        return ArrayRecord(), MetricRecord({"answers": len(received)})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Have the same clients classify their own test data."""
        return self._messages(MessageType.EVALUATE, server_round)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Add up the confusion counts of the clients."""
        total = Confusion.empty()
        for reply in replies:
            with reading(f"the evaluation of client {reply.metadata.src_node_id}"):
                total = total + read_confusion(content_of(reply), self.options.limits)
        self.evaluations[server_round] = total
        return MetricRecord({"accuracy": total.accuracy}) if total.total else None

    def summary(self) -> None:
        """Log how prototypes are averaged."""
        logger.info("FedProto, %s average over the owners of a class", self.aggregation)

    def _messages(self, kind: str, number: int) -> list[Message]:
        content = RecordDict({"config": ConfigRecord({"round": number})})
        if len(self.prototypes):
            content["memory"], content["header"] = encode(
                Contribution(self.prototypes, "", 0, "merged"), "float32"
            )
        return [Message(content, node, kind, group_id=str(number)) for node in self._nodes]

    def _read(self, reply: Message) -> PrototypeMemory | None:
        like = self.prototypes.empty_like()
        with reading(f"what client {reply.metadata.src_node_id} sent"):
            for arrays, header, _ in read_headers(content_of(reply), self.options.limits):
                return decode(arrays, header, like, self.options.limits).memory
        return None


def average(
    received: Iterable[PrototypeMemory], before: PrototypeMemory, aggregation: str
) -> PrototypeMemory:
    """One prototype a class.

    Args:
        received: statistics of each client's embeddings.
        before: prototypes so far, kept for classes that nobody sent.
        aggregation: ``uniform`` weighs every owner of a class alike, ``count`` by its samples.
    """
    total = before.empty_like()
    for memory in received:
        total.merge(memory if aggregation == "count" else one_each(memory))
    absent = before.classes[~torch.isin(before.classes, total.classes)]
    total.merge(before.subset(absent.tolist()))
    return one_each(total)


def one_each(memory: PrototypeMemory) -> PrototypeMemory:
    """The means of a memory, each counted as one sample."""
    fresh = memory.empty_like()
    return fresh.update(memory.means, memory.classes) if len(memory) else fresh
