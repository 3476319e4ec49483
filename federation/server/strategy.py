"""The server's side as a Flower ``Strategy``: it asks, checks, merges once, and keeps books."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from torch import nn

from protocl.backbones.base import fingerprint
from protocl.federation.server.aggregation import Door, Intake
from protocl.federation.server.resumable import KeepsBooks
from protocl.federation.server.sampling import (
    Options,
    addressed,
    choose_nodes,
    collect_late,
)
from protocl.federation.server.state import MergedMemory
from protocl.federation.wire.messages import Contribution, MessageReader, encode
from protocl.federation.wire.received_backbone import backbone_record
from protocl.federation.wire.replies import content_of, describe, read_confusion, sender
from protocl.memory import PrototypeMemory
from protocl.memory.estimates.group_sums import GroupSums
from protocl.memory.estimates.subsamples import SubSamples
from protocl.metrics.confusion import Confusion

logger = logging.getLogger(__name__)


class Screen(Protocol):
    """A defence that looks at all contributions of a round together."""

    def __call__(
        self, contributions: Sequence[Contribution], merged: PrototypeMemory
    ) -> Sequence[str | None]:
        """For each contribution None to accept it, or the reason why not."""


Merge = Callable[[Sequence[PrototypeMemory]], PrototypeMemory]
"""One memory of those of all clients: :class:`protocl.federation.robust.rules.RobustMerge`."""


@runtime_checkable
class MergesGroups(Protocol):
    """A rule for clients that deal their classes into groups, each with an id of its own."""

    @property
    def subsamples(self) -> SubSamples:
        """How they do."""


@runtime_checkable
class MergesSums(Protocol):
    """A rule that looks at clients one by one, in place of which edges of a tree send sums."""

    @property
    def sums(self) -> GroupSums:
        """What they send."""


class FederatedPrototypes(KeepsBooks):
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
        checkpoints: folder of the books (:mod:`protocl.federation.books`), to which each round's
            changes are written before anything is acknowledged; :meth:`resume` continues there.
        screen: looks at the contributions of a round before they are merged.
        merge: makes the merged memory of what each client contributed; the exact sum by default.
            Needs ``keep_contributions``.
        backbone: sent to each client with the first request that it answers; its fingerprint must
            be that of ``empty``. None where clients have it.
        door: makes this server an edge; it meets clients that come from others.
        rows: this is a root: its clients are edges, each of which sends all that it merged.
        estimate: of a root, makes the merged memory of the sum of rows.
        means: ids of each class in the rows of a root.

    Attributes: see :class:`protocl.federation.server.resumable.KeepsBooks`.

    Example:
        >>> from protocl.federation import ClientData, PrototypeClient, simulate
        >>> def load(context):  # client 0 has class 0, client 1 class 1, ...
        ...     number = int(context.node_config["partition-id"])
        ...     return ClientData([(torch.full((3, 2), float(number)), torch.tensor([number] * 3))])

        >>> empty = PrototypeMemory(2, exact=True)
        >>> strategy = FederatedPrototypes(empty)
        >>> _ = simulate(strategy, PrototypeClient(load, empty).app(), clients=3, rounds=1)
        >>> strategy.memory.means.tolist(), strategy.memory.counts.tolist()
        ([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]], [3, 3, 3])
        >>> strategy.forget_client("1001")  # as the ledger names it
        >>> strategy.memory.classes.tolist()
        [0, 2]
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
        door: Door | None = None,
        rows: bool = False,
        estimate: Callable[[PrototypeMemory], PrototypeMemory] | None = None,
        means: int = 1,
    ) -> None:
        if rows and (merge is not None or screen is not None):
            raise ValueError(
                f"{'screen' if merge is None else 'merge'} looks at clients side by side, and rows "
                "of edges are sums over clients: give it to the edges"
            )
        if merge is not None and not keep_contributions:
            raise ValueError("merge looks at clients side by side: keep_contributions must be true")
        if backbone is not None and fingerprint(backbone) != empty.fingerprint:
            raise ValueError("backbone: its fingerprint is not that of the statistics to merge")
        self.options = options or Options()
        self.empty = empty.empty_like()
        means = merge.subsamples.number if isinstance(merge, MergesGroups) else means
        merged = MergedMemory(
            empty, keep_contributions=keep_contributions, limits=self.options.limits,
            means=means,
        )  # fmt: skip
        super().__init__(merged, checkpoints)
        self.rows = rows
        self.merge, self.estimate = merge, estimate
        self._merged: tuple[str, PrototypeMemory] | None = None
        self._row: tuple[str, PrototypeMemory] | None = None
        reader = MessageReader(self.empty, self.options.limits, ("delta", "full"), means, rows=rows)
        verdicts = None if screen is None else (lambda sent: screen(sent, self.memory))
        self._intake = Intake(self.merged, reader, verdicts, self.seconds, door)
        self._taken: dict[str, str] = {}
        self._place = {} if door is None else {"edge": door.name}
        self._backbone = None if backbone is None else backbone_record(backbone)

    @property
    def memory(self) -> PrototypeMemory:
        """The merged memory; read it, do not change it."""
        exact = self.merged.memory
        if (self.merge is None and self.estimate is None) or not len(exact):
            return exact
        if self._merged is None or self._merged[0] != exact.revision:
            self._merged = exact.revision, self._made_of(exact)
        return self._merged[1]

    def _made_of(self, exact: PrototypeMemory) -> PrototypeMemory:
        if self.merge is None:
            return exact if self.estimate is None else self.estimate(exact)
        return self.merge(self._parts())

    def _parts(self) -> list[PrototypeMemory]:
        """What each client contributed, in their order."""
        parts = [self.merged.contribution_of(client) for client in self.merged.clients]
        return [part for part in parts if len(part)]

    @property
    def row(self) -> PrototypeMemory:
        """What this server sends as an edge; read it, do not change it."""
        if not isinstance(self.merge, MergesSums):
            return self.memory
        exact = self.merged.memory
        if self._row is None or self._row[0] != exact.revision:
            sums = self.merge.sums
            made = sums(self._parts()) if len(exact) else sums.kind(self.empty)
            self._row = exact.revision, made
        return self._row[1]

    def start(self, grid: Grid, *arguments: Any, **options: Any) -> Result:
        """See :class:`protocl.federation.server.resumable.LastingStrategy`.

        Raises:
            AllFailedError: clients failed, or were refused, and nothing was ever merged.
            ConfigError: another process writes the same books.
        """
        with self.writing():
            result = super().start(grid, *arguments, **options)
            if self.requests is not None:
                self.heed()
        self.seconds.measure = self.measuring
        self.merged.ledger.require_merged()
        return result

    # -- Flower calls these -----------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask some of the nodes online for what they have that is new."""
        self._begin(server_round)
        if self.requests is not None:
            self.heed()
        number = self.round
        if self.rows:
            self._taken = {c["client"]: json.dumps(c) for c in self.certificates if "row" in c}
        # Before asking: a client whose late answer is merged now need not repeat it.
        self._intake.take(collect_late(grid), number)
        nodes = self._choose(grid, number, self.options.participation)
        messages = [
            addressed(node, MessageType.TRAIN, number, self._request(node, number, config))
            for node in nodes
        ]
        self._intake.expect(messages, number)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge what came, in the order of clients, then save; nothing is acknowledged before."""
        self.round = self._first + server_round
        self._intake.take(replies, self.round)
        self._save_round()
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
        return [addressed(node, MessageType.EVALUATE, self.round, content) for node in nodes]

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Add up the confusion counts of the clients; who failed is noted with the reason."""
        total, failures = Confusion.empty(), self.failed_evaluations.setdefault(self.round, [])
        for reply in replies:
            try:
                total = total + read_confusion(content_of(reply), self.options.limits)
            except Exception as error:  # whatever is in a reply, the others count
                failures.append(f"client {sender(reply)}: {describe(error)}")
                logger.warning("an evaluation does not count: %s", failures[-1])
        if total.total == 0:
            return None
        self.evaluations[self.round] = total
        return MetricRecord(
            {"accuracy": total.accuracy, "num-examples": total.total, "failed": len(failures)}
        )

    def summary(self) -> None:
        """Log what is merged."""
        logger.info(
            "merging memories of level %s, %d features, %s",
            self.empty.level, self.empty.width,
            f"fixed point with step {self.empty.step:g}" if self.empty.exact else "float64",
        )  # fmt: skip

    def outcome(self, number: int) -> dict[str, int | float | None]:
        """What became of the contributions of a round, and the clients' accuracy after it."""
        confusion = self.evaluations.get(number)
        accuracy = None if confusion is None else confusion.accuracy
        failed = len(self.failed_evaluations.get(number, ()))
        return {
            **self.merged.ledger.outcomes(number),
            "accuracy": accuracy,
            "failed-evaluations": failed,
        }

    # -- asking -----------------------------------------------------------------------------

    def _choose(self, grid: Grid, number: int, share: float) -> list[int]:
        options = self.options
        return choose_nodes(
            grid, number, share,
            min_clients=options.min_clients, wait=options.wait, seed=options.seed,
        )  # fmt: skip

    def _request(self, node: int, number: int, config: ConfigRecord) -> RecordDict:
        request = ConfigRecord(
            {
                **config,
                **self.empty.describe(),
                "fingerprint": self.empty.fingerprint or "",
                "round": number,
                **self.merged.known.terms_for(str(node)),
                **self._place,
                **self._certified(str(node)),
            }
        )
        content = RecordDict({"config": request})
        if self._backbone is not None and node not in self._intake.equipped:
            content["backbone"] = self._backbone
        return content

    def _certified(self, node: str) -> dict[str, str]:
        """The certificate of what the last row of an edge took away, where one did."""
        taken = self._taken.get(self.merged.known.client_at(node) or "")
        return {"taken": taken} if taken else {}

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
