"""What an edge sends upwards: its whole state, numbered, in place of the one before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

from protocl.federation.client.client import heard_of, note_newest, require_same_statistics, take_up
from protocl.federation.exactly_once.client import Life, Pending, name_of_life
from protocl.federation.exactly_once.edge import Standing
from protocl.federation.wire.messages import Contribution, encode
from protocl.memory import PrototypeMemory

KEPT = 16
"""Rows before the one that the root has of which it is known of what they are the sum, and
certificates of the root."""


@dataclass(frozen=True)
class Holding:
    """What an edge has of its clients.

    Attributes:
        memory: the merged one.
        names: class id -> name, where classes are known by name.
        withdrawals: how many clients were ever forgotten or left, none of which is in it.
        erasures: how often anything was forgotten or withdrawn, a class or samples as well.
        stamp: equal stamps mean equal statistics; it says nothing else of them.
        entries: rows of the edge's ledger of which the memory is the sum; 0 without books.
    """

    memory: PrototypeMemory
    names: Mapping[int, str] = field(default_factory=dict)
    withdrawals: int = 0
    erasures: int = 0
    stamp: str = ""
    entries: int = 0


@dataclass
class RowState:
    """What an edge must keep as a client of the root: no statistics, which it may have to forget.

    Attributes:
        standing: which row is on its way, and what the root has.
        stamp: of what was in the newest row.
        erasures: that it was without.
        erased: whether the root may have what was forgotten since it settled a row; it is told to
            destroy what it had.
        entries: number of a row -> rows of the edge's ledger of which it is the sum.
        receipts: the root's certificates of what rows took away, oldest first.
    """

    standing: Standing = field(default_factory=Standing)
    stamp: str = ""
    erasures: int = 0
    erased: bool = False
    entries: dict[int, int] = field(default_factory=dict)
    receipts: list[dict[str, Any]] = field(default_factory=list)

    def update(self, now: Holding, config: ConfigRecord) -> list[Contribution]:
        """The rows to send, at most one, to a root that says in ``config`` what it has."""
        standing, life = self.standing, self.standing.life
        standing.hear(*heard_of(config))
        self._take_receipt(str(config.get("taken", "")))
        on_its_way = bool(life.pending)  # what is in it is not kept: it is sent anew, as it is now
        self.erased = now.erasures != self.erasures or (self.erased and on_its_way)
        changed = on_its_way or now.stamp != self.stamp
        if standing.state(now.memory.total, now.withdrawals, changed=changed):
            self.stamp, self.erasures = now.stamp, now.erasures
            self.entries[life.seq] = now.entries
        oldest = life.acknowledged - KEPT
        self.entries = {seq: n for seq, n in self.entries.items() if seq >= oldest}
        if config["forgotten"]:
            return []
        return [self._row(pending.seq, now) for pending in life.pending]

    def _take_receipt(self, text: str) -> None:
        """Keep the root's certificate of a row of this edge."""
        if not text:
            return
        said, life = json.loads(text), self.standing.life
        own = {name_of_life(epoch) for epoch in (life.epoch, *life.replaces)}
        row = said["row"]
        if said["life"] in own and row in self.entries:
            receipt = {key: said[key] for key in ("before", "after", "when")}
            receipt |= {"level": "root", "row": row, "entries": self.entries[row]}
            others = [one for one in self.receipts if one["row"] != row]
            self.receipts = [*others, receipt][-KEPT:]

    def to_text(self) -> str:
        """All of it, for :meth:`read`."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Self:
        """What :meth:`to_text` gave.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: the text is something else.
        """
        values = json.loads(text)
        standing = values.pop("standing")
        life = standing.pop("life")
        life["pending"] = [Pending(*pending) for pending in life["pending"]]
        life |= {key: tuple(life[key]) for key in ("replaces", "shares")}
        standing["included"] = {int(row): n for row, n in standing["included"].items()}
        values["entries"] = {int(row): n for row, n in values["entries"].items()}
        return cls(Standing(Life(**life), **standing), **values)

    def _row(self, number: int, now: Holding) -> Contribution:
        memory, life = now.memory, self.standing.life
        names = {int(c): now.names[int(c)] for c in memory.classes} if now.names else {}
        return Contribution(
            memory, life.epoch, number, "full", names, life.replaces, life.shares,
            life.secret if life.proves else "", withdraws=self.erased, row=True,
        )  # fmt: skip


def answer(message: Message, context: Context, state: RowState, now: Holding) -> Message:
    """The answer of an edge to the root that asks for what is new.

    Args:
        message: from the root.
        context: of the edge as a node of the root.
        state: is changed; it must be saved before the answer leaves.
        now: what the edge has.
    """
    config = message.content.config_records["config"]
    require_same_statistics(now.memory, config)
    life = state.standing.life
    take_up(life, context)
    rows = state.update(now, config)
    note_newest(life, context)
    content = RecordDict({"metrics": MetricRecord({"num-examples": now.memory.total})})
    for row in rows:
        content["arrays-0"], content["header-0"] = encode(row)
    return Message(content, reply_to=message)
