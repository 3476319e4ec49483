"""What an edge sends upwards: its whole state, numbered, in place of the one before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

from protocl.federation.client.client import heard_of, note_newest, require_same_statistics, take_up
from protocl.federation.exactly_once.edge import Standing
from protocl.federation.wire.messages import Contribution, encode
from protocl.memory import PrototypeMemory


@dataclass(frozen=True)
class Holding:
    """What an edge has of its clients.

    Attributes:
        memory: the merged one.
        names: class id -> name, where classes are known by name.
        withdrawals: how many clients were ever forgotten or left, none of which is in it.
        erasures: how often anything was forgotten or withdrawn, a class or samples as well.
    """

    memory: PrototypeMemory
    names: Mapping[int, str] = field(default_factory=dict)
    withdrawals: int = 0
    erasures: int = 0


@dataclass
class RowState:
    """What an edge must keep as a client of the root.

    Attributes:
        standing: which row is on its way, and what the root has.
        last: what was in the newest row; None before the first.
        erased: whether the root may have what was forgotten since it settled a row; it is told to
            destroy what it had.
    """

    standing: Standing = field(default_factory=Standing)
    last: Holding | None = None
    erased: bool = False

    def update(self, now: Holding, config: ConfigRecord, *, changed: bool) -> list[Contribution]:
        """The rows to send, at most one, to a root that says in ``config`` what it has."""
        standing = self.standing
        standing.hear(*heard_of(config))
        known = 0 if self.last is None else self.last.erasures
        self.erased = now.erasures != known or (self.erased and bool(standing.life.pending))
        if standing.state(now.memory.total, now.withdrawals, changed=changed):
            self.last = now
        if config["forgotten"]:
            return []
        return [self._row(pending.seq) for pending in standing.life.pending]

    def _row(self, number: int) -> Contribution:
        assert self.last is not None
        memory, life = self.last.memory, self.standing.life
        names = {int(c): self.last.names[int(c)] for c in memory.classes} if self.last.names else {}
        return Contribution(
            memory, life.epoch, number, "full", names, life.replaces, life.shares,
            life.secret if life.proves else "", withdraws=self.erased, row=True,
        )  # fmt: skip


def answer(
    message: Message, context: Context, state: RowState, now: Holding, *, changed: bool
) -> Message:
    """The answer of an edge to the root that asks for what is new.

    Args:
        message: from the root.
        context: of the edge as a node of the root.
        state: is changed; it must be saved before the answer leaves.
        now: what the edge has.
        changed: whether its statistics are others than in the last row.
    """
    config = message.content.config_records["config"]
    require_same_statistics(now.memory, config)
    life = state.standing.life
    take_up(life, context)
    rows = state.update(now, config, changed=changed)
    note_newest(life, context)
    content = RecordDict({"metrics": MetricRecord({"num-examples": now.memory.total})})
    for row in rows:
        content["arrays-0"], content["header-0"] = encode(row)
    return Message(content, reply_to=message)
