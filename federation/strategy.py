"""The server's side as a Flower ``Strategy``: it asks, checks, merges once, and keeps books."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from protocl.backbones.base import fingerprint
from protocl.checkpoint import CheckpointFolder
from protocl.confusion import Confusion
from protocl.errors import DataError
from protocl.federation.choosing import choose_nodes
from protocl.federation.grid import MeteredGrid
from protocl.federation.ledger import Entry, Traffic
from protocl.federation.merging import MergedMemory
from protocl.federation.messages import Contribution, MessageReader, Received, encode
from protocl.federation.packing import Precision
from protocl.federation.received_backbone import backbone_record
from protocl.federation.replies import read_confusion, read_headers
from protocl.federation.validation import Limits, RejectedError
from protocl.memory import PrototypeMemory

logger = logging.getLogger(__name__)

_SUPERLINK = 1  # node id under which a SuperLink itself answers for a node that is gone


class Screen(Protocol):
    """A defence that looks at all contributions of a round together."""

    def __call__(
        self, contributions: Sequence[Contribution], merged: PrototypeMemory
    ) -> Sequence[str | None]:
        """For each contribution None to accept it, or the reason why not."""


Merge = Callable[[Sequence[PrototypeMemory]], PrototypeMemory]
"""One memory of those of all clients: :class:`protocl.federation.robust.RobustMerge`."""


@dataclass
class Seconds:
    """Where the server's own time went, in seconds, over all rounds.

    Attributes:
        encode, decode, merge, save: parts of a round; ``decode`` includes validation.
        measure: counting the bytes of messages.
    """

    encode: float = 0.0
    decode: float = 0.0
    merge: float = 0.0
    save: float = 0.0
    measure: float = 0.0


@dataclass
class _Arrival:
    client: str
    received: Received
    size: int


@dataclass
class Options:
    """How a round is conducted.

    Attributes:
        participation: share of the nodes online that is asked in each round, in (0, 1].
        min_clients: nodes that must be online before a round begins.
        wait: seconds to wait for them.
        evaluate: share of the nodes online that evaluate after each round; 0 for none.
        precision: of the merged memory as it is sent to clients.
        limits: what one contribution may at most claim.
        seed: decides who is asked.
    """

    participation: float = 1.0
    min_clients: int = 1
    wait: float = 60.0
    evaluate: float = 1.0
    precision: Precision = "exact"
    limits: Limits = field(default_factory=Limits)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.participation <= 1:
            raise ValueError(f"participation={self.participation}: expected 0 < share <= 1")
        if not 0 <= self.evaluate <= 1:
            raise ValueError(f"evaluate={self.evaluate}: expected 0 <= share <= 1")
        if self.min_clients < 1:
            raise ValueError(f"min_clients={self.min_clients}: expected at least 1")


class FederatedPrototypes(Strategy):
    """Merges the memories of clients exactly, whoever comes, goes, repeats or is late.

    After every round :attr:`memory` is the sum over all contributions in the ledger, each counted
    once. A head fitted to it is the head that all samples in one place would give. Clients may
    skip rounds, join late, leave, answer after the deadline or answer twice.

    Usage::

        strategy = FederatedPrototypes(head.new_memory(feature_dim, exact=True))
        simulate(strategy, client.app(), clients=100, rounds=5)
        head.fit(strategy.memory)

    Args:
        empty: memory without samples that says what is merged: width, level, feature map,
            arithmetic and fingerprint of the backbone.
        options: how a round is conducted.
        keep_contributions: keep each client's sum, so that a client can be forgotten.
        checkpoints: folder to which the whole state is written after each round, before anything
            is acknowledged; :meth:`resume` continues from there.
        screen: looks at the contributions of a round before they are merged.
        merge: makes the merged memory of what each client contributed; the exact sum by default.
            Needs ``keep_contributions``.
        backbone: sent to each client with the first request that it answers; its fingerprint must
            be that of ``empty``. None where clients have it.

    Attributes:
        merged: the server's state; its ledger, its names.
        traffic: bytes of every message.
        round: number of rounds finished, also by an earlier process.
        seconds: where the server's own time went.
        evaluations: round -> confusion over the clients' own test data.
    """

    def __init__(
        self,
        empty: PrototypeMemory,
        options: Options | None = None,
        *,
        keep_contributions: bool = True,
        checkpoints: Path | None = None,
        screen: Screen | None = None,
        merge: Merge | None = None,
        backbone: nn.Module | None = None,
    ) -> None:
        if merge is not None and not keep_contributions:
            raise ValueError("merge looks at clients side by side: keep_contributions must be true")
        if backbone is not None and fingerprint(backbone) != empty.fingerprint:
            raise ValueError("backbone: its fingerprint is not that of the statistics to merge")
        self.options = options or Options()
        self.empty = empty.empty_like()
        self.merged = MergedMemory(empty, keep_contributions=keep_contributions)
        self.screen = screen
        self.merge = merge
        self._reader = MessageReader(self.empty, self.options.limits)
        self._merged: tuple[str, PrototypeMemory] | None = None
        self.traffic = Traffic()
        self.seconds = Seconds()
        self.evaluations: dict[int, Confusion] = {}
        self.round = 0
        self._first = 0
        self._checkpoints = None if checkpoints is None else CheckpointFolder(checkpoints)
        self._asked: dict[int, Sequence[Message]] = {}
        self._backbone = None if backbone is None else backbone_record(backbone)
        self._equipped: set[int] = set()  # nodes known to have the backbone

    @property
    def memory(self) -> PrototypeMemory:
        """The merged memory; read it, do not change it."""
        exact, clients = self.merged.memory, self.merged.clients
        if self.merge is None or not len(exact):
            return exact
        if self._merged is None or self._merged[0] != exact.revision:
            parts = [self.merged.contribution_of(client) for client in clients]
            self._merged = exact.revision, self.merge([part for part in parts if len(part)])
        return self._merged[1]

    def resume(self) -> bool:
        """Continue from the newest checkpoint that is whole.

        Returns:
            False where there is none.

        Raises:
            ValueError, FingerprintError: it belongs to a federation of other statistics.
        """
        state = self._checkpoints and self._checkpoints.load_newest({}, on_damage=_warn)
        if not state:
            return False
        self.merged.restore(state["merged"])
        self.traffic.rows = state["traffic"]
        self.evaluations = {
            key: Confusion.from_dict(value) for key, value in state["evaluations"].items()
        }
        self.round = state["round"]
        return True

    def forget_client(self, client: str) -> None:
        """Remove a client's contribution exactly; see :meth:`MergedMemory.forget_client`."""
        self.merged.forget_client(client)
        self._save()

    def forget_classes(self, classes: Iterable[int]) -> None:
        """Remove classes exactly; see :meth:`MergedMemory.forget_classes`."""
        self.merged.forget_classes(classes)
        self._save()

    def start(self, grid: Grid, *arguments: Any, **options: Any) -> Result:
        """Run rounds, as every Flower strategy does, and measure every message."""
        metered = MeteredGrid(grid, self.traffic)
        result = super().start(metered, *arguments, **options)
        self.seconds.measure += metered.seconds
        return result

    # -- Flower calls these -----------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask some of the nodes online for what they have that is new."""
        if server_round == 1:  # of a second run, or of one that was resumed
            self._first = self.round
        number = self._first + server_round
        self.round = number
        # Before asking: a client whose late answer is merged now need not repeat it.
        self._take(_collect_late(grid))
        nodes = self._choose(grid, number, self.options.participation)
        messages = [
            _message(node, MessageType.TRAIN, number, self._request(node, number, config))
            for node in nodes
        ]
        self._asked[number] = messages
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge what came, in the order of clients, then save; nothing is acknowledged before."""
        self.round = self._first + server_round
        self._take(replies)
        self._save()
        # Asked no more than one round ago, a node may still be reported as gone.
        self._asked = {n: sent for n, sent in self._asked.items() if n >= self.round - 1}
        return self._encoded()[0], MetricRecord(dict(self._summary()))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the merged memory to nodes that classify their own test data with it."""
        if not self.options.evaluate or not len(self.memory):
            return []
        memory, header = self._encoded()
        content = RecordDict({"memory": memory, "header": header, "config": config})
        nodes = self._choose(grid, self.round, self.options.evaluate)
        return [_message(node, MessageType.EVALUATE, self.round, content) for node in nodes]

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Add up the confusion counts of the clients."""
        total, failed = Confusion.empty(), 0
        for reply in replies:
            if reply.has_error():
                failed += 1
                continue
            try:
                total = total + read_confusion(reply.content)
            except DataError as error:
                failed += 1
                logger.warning("evaluation of client %s refused: %s", _sender(reply), error)
        if total.total == 0:
            return None
        self.evaluations[self.round] = total
        return MetricRecord(
            {"accuracy": total.accuracy, "num-examples": total.total, "failed": failed}
        )

    def summary(self) -> None:
        """Log what is merged."""
        logger.info(
            "merging memories of level %s, %d features, %s",
            self.empty.level, self.empty.width,
            f"fixed point with step {self.empty.step:g}" if self.empty.exact else "float64",
        )  # fmt: skip

    # -- asking -----------------------------------------------------------------------------

    def _choose(self, grid: Grid, number: int, share: float) -> list[int]:
        options = self.options
        return choose_nodes(
            grid, number, share,
            min_clients=options.min_clients, wait=options.wait, seed=options.seed,
        )  # fmt: skip

    def _request(self, node: int, number: int, config: ConfigRecord) -> RecordDict:
        epoch, settled = self.merged.settled_of(str(node))
        request = ConfigRecord(
            {
                **config,
                **self.empty.describe(),
                "fingerprint": self.empty.fingerprint or "",
                "round": number,
                "epoch": epoch,
                "settled": settled,
                # Of a client never heard of, which may be known to an earlier server.
                "full": not epoch or str(node) in self.merged.wants_full,
            }
        )
        content = RecordDict({"config": request})
        if self._backbone is not None and node not in self._equipped:
            content["backbone"] = self._backbone
        return content

    # -- merging ----------------------------------------------------------------------------

    def _take(self, replies: Iterable[Message]) -> None:
        """Merge what is good in ``replies``, in the order of clients."""
        arrivals = self._arrivals(sorted(replies, key=_sender))
        if self.screen is not None:
            arrivals = iter(self._screened(self.screen, list(arrivals)))
        # One by one, each while its bytes are still in the processor's cache.
        for arrival in arrivals:
            self._accept(arrival)

    def _arrivals(self, replies: Iterable[Message]) -> Iterator[_Arrival]:
        """Contributions that pass the checks; all others are entered in the ledger."""
        for reply in replies:
            if reply.has_error():
                self._equipped.discard(reply.metadata.src_node_id)
                self._note_failure(reply)
                continue
            self._equipped.add(reply.metadata.src_node_id)
            client = _sender(reply)
            for arrays, header, size in read_headers(reply.content):
                start = time.perf_counter()
                try:
                    received = self._reader.read(arrays, header)
                except RejectedError as error:
                    epoch, seq = header.get("epoch"), header.get("seq")
                    well_formed = isinstance(epoch, str) and isinstance(seq, int)
                    self._refuse(error, client, size, *((epoch, seq) if well_formed else ("", 0)))  # type: ignore[arg-type]
                    continue
                finally:
                    self.seconds.decode += time.perf_counter() - start
                yield _Arrival(client, received, size)

    def _screened(self, screen: Screen, arrivals: list[_Arrival]) -> list[_Arrival]:
        """The contributions that the screen lets pass."""
        start = time.perf_counter()
        sent = [self._reader.contribution(arrival.received) for arrival in arrivals]
        verdicts = screen(sent, self.memory) if arrivals else ()
        passed = []
        for arrival, verdict in zip(arrivals, verdicts, strict=True):
            if verdict is None:
                passed.append(arrival)
            else:
                self._refuse_arrival(RejectedError("screened", verdict), arrival)
        self.seconds.merge += time.perf_counter() - start
        return passed

    def _accept(self, arrival: _Arrival) -> None:
        start = time.perf_counter()
        try:
            self.merged.accept(
                arrival.received,
                client=arrival.client,
                round_number=self.round,
                size=arrival.size,
            )
        except RejectedError as error:
            self._refuse_arrival(error, arrival)
        self.seconds.merge += time.perf_counter() - start

    def _refuse_arrival(self, error: RejectedError, arrival: _Arrival) -> None:
        received = arrival.received
        self._refuse(error, arrival.client, arrival.size, received.epoch, received.seq)

    def _refuse(self, error: RejectedError, client: str, size: int, epoch: str, seq: int) -> None:
        logger.warning("contribution of client %s rejected: %s", client, error)
        self.merged.refuse(
            error, client=client, round_number=self.round, size=size, epoch=epoch, seq=seq
        )

    def _note_failure(self, reply: Message) -> None:
        client = _sender(reply)
        if reply.metadata.src_node_id == _SUPERLINK:
            # The SuperLink answers in place of a node that is gone.
            asked = (message for sent in self._asked.values() for message in sent)
            client = next(
                (
                    str(message.metadata.dst_node_id)
                    for message in asked
                    if message.metadata.message_id == reply.metadata.reply_to_message_id
                ),
                client,
            )
        reason = f"{reply.error.code}: {reply.error.reason}"[:500]
        logger.warning("client %s failed: %s", client, reason)
        self.merged.ledger.add(Entry(self.round, client, "failed", reason=reason))

    # -- books ------------------------------------------------------------------------------

    def _encoded(self) -> tuple[ArrayRecord, ConfigRecord]:
        start = time.perf_counter()
        merged = Contribution(self.memory, "", 0, "merged", self.merged.names)
        records = encode(merged, self.options.precision)
        self.seconds.encode += time.perf_counter() - start
        return records

    def _summary(self) -> Mapping[str, int | float]:
        outcomes = self.merged.ledger.outcomes(self.round)
        return {
            **{name: outcomes[name] for name in ("merged", "duplicate", "rejected", "failed")},
            "classes": len(self.memory),
            "samples": self.memory.total,
        }

    def _save(self) -> None:
        if self._checkpoints is None:
            return
        start = time.perf_counter()
        state = {
            "round": self.round,
            "merged": self.merged.state(),
            "traffic": self.traffic.rows,
            "evaluations": {key: value.to_dict() for key, value in self.evaluations.items()},
        }
        self._checkpoints.save(self.round, state, {})
        self.seconds.save += time.perf_counter() - start


def _message(node: int, kind: str, number: int, content: RecordDict) -> Message:
    return Message(content, dst_node_id=node, message_type=kind, group_id=str(number))


def _sender(reply: Message) -> str:
    return str(reply.metadata.src_node_id)


def _collect_late(grid: Grid) -> list[Message]:
    collect = getattr(grid, "collect_late", None)
    return [] if collect is None else list(collect())


def _warn(error: DataError) -> None:
    logger.warning("%s; continuing from the one before it", error)
