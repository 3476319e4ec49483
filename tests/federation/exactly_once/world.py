"""Clients, copies of them and a server between which anything may go wrong; samples are numbers."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from protocl.federation.exactly_once.client import Kind, Life, Settled
from protocl.federation.exactly_once.server import KnownClients, Tombstone, Verdict


class Sent(NamedTuple):
    """A contribution on its way."""

    epoch: str
    seq: int
    kind: Kind
    replaces: tuple[str, ...]
    shares: tuple[int, ...]
    samples: tuple[int, ...]
    secret: str = ""
    moves: int = 0
    row: bool = False


class Request(NamedTuple):
    node: str
    terms: dict[str, Any]


class Reply(NamedTuple):
    node: str
    contributions: list[Sent]


@dataclass
class State:
    """What lies on a client's disk."""

    life: Life = field(default_factory=Life)
    samples: tuple[int, ...] = ()
    parts: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def keep(self, new: tuple[int, ...] = ()) -> None:
        """Keep the samples of what is pending, as ``ClientState`` keeps the statistics."""
        self.parts = {
            seq: self.parts.get(seq, self.samples if kind == "full" else new)
            for seq, kind, _ in self.life.pending
        }


@dataclass
class Process:
    """A node that works on a client's state.

    Attributes:
        group: of the copies of one client.
        known: what the process remembers that it did last; lost when it ends.
        waiting: samples that it has not counted yet.
    """

    group: int
    node: str
    state: State = field(default_factory=State)
    known: tuple[str, int] | None = None
    waiting: tuple[int, ...] = ()

    def label(self) -> Sent:
        life = self.state.life
        return Sent(life.epoch, life.seq, "full", life.replaces, life.shares, ())

    def answer(self, terms: dict[str, Any]) -> Reply:
        """As ``PrototypeClient.train``."""
        state, life = self.state, self.state.life
        if self.known != (life.epoch, life.seq):
            life.take_up()
        heard = Settled(terms["epoch"], terms["settled"], terms["samples"])
        life.hear(terms["server"], heard, terms["prove"])
        state.keep()
        new, self.waiting = self.waiting, ()
        if new:
            state.samples += new
            life.contribute(len(new))
            state.keep(new)
        if terms["full"]:
            life.send_everything()
            state.keep()
        self.known = (life.epoch, life.seq)
        pending = [] if terms["forgotten"] else life.pending
        secret = life.secret if life.proves else ""
        return Reply(
            self.node,
            [
                Sent(
                    life.epoch,
                    p.seq,
                    p.kind,
                    life.replaces,
                    life.shares,
                    state.parts[p.seq],
                    secret,
                )
                for p in pending
            ],
        )


class Server:
    """As ``MergedMemory`` with the rounds of ``FederatedPrototypes``."""

    def __init__(self) -> None:
        self.known = KnownClients()
        self.merged: dict[str, tuple[int, ...]] = {}
        self.now = 0
        self.merges = 0
        self.judged: list[Verdict] = []
        self.kinds: list[Kind] = []
        self.tombstones: list[Tombstone] = []

    def take(self, reply: Reply, *, overflows: bool = False) -> None:
        self.known.answered(reply.node, self.now)
        for sent in reply.contributions:
            verdict = self.known.judge(sent, reply.node, replaceable=True, now=self.now)
            self.judged.append(verdict)
            self.kinds.append(sent.kind)
            if verdict.outcome == "duplicate":
                self.known.repeat(sent, verdict.client, reply.node, self.now)
            elif verdict.outcome == "refuse" or overflows:
                self.known.refuse(reply.node, sent.epoch, verdict.reason)
            else:
                before = () if sent.kind == "full" else self.merged.get(verdict.client, ())
                self.merged[verdict.client] = before + sent.samples
                self.known.settle(sent, verdict.client, reply.node, len(sent.samples), self.now)
                self.merges += 1

    def forget(self, client: str) -> None:
        self.tombstones.append(self.known.forget(client))
        self.merged.pop(client)

    def backup(self) -> Any:
        return copy.deepcopy((self.known.state(), self.merged, self.now))

    def restored(self, backup: Any) -> Server:
        """Another process, from a backup and the list of who was forgotten."""
        server, (known, merged, now) = Server(), copy.deepcopy(backup)
        server.known.restore(known)
        server.merged, server.now = merged, now
        server.tombstones = self.tombstones
        for tombstone in self.tombstones:
            for name in server.known.bury(tombstone):
                server.merged.pop(name, None)
        return server


class World:
    def __init__(self, clients: int) -> None:
        self.server = Server()
        self.backups = [self.server.backup()]
        self.processes = [Process(number, f"n{number}") for number in range(clients)]
        self.snapshots: list[tuple[int, State]] = []
        self.requests: list[Request] = []
        self.replies: list[Reply] = []
        self.forgotten: set[int] = set()
        self._nodes = clients
        self._samples = 0

    def new_node(self) -> str:
        self._nodes += 1
        return f"n{self._nodes - 1}"

    def learn(self, process: Process) -> None:
        process.waiting += (self._samples,)
        self._samples += 1

    def ask(self, process: Process) -> Request:
        return Request(process.node, self.server.known.terms_for(process.node))

    def answer(self, request: Request) -> Reply | None:
        """None where the node is gone."""
        found = [p for p in self.processes if p.node == request.node]
        return found[0].answer(request.terms) if found else None

    def round(self) -> None:
        """A round in which nothing goes wrong."""
        self.server.now += 1
        for request in [self.ask(process) for process in self.processes]:
            reply = self.answer(request)
            assert reply is not None
            self.server.take(reply)

    def group(self, number: int) -> list[Process]:
        return [p for p in self.processes if p.group == number]

    def restore(self, backup: Any) -> None:
        self.server = self.server.restored(backup)

    def forget(self, group: int) -> None:
        """The operator names one of the clients that the server knows."""
        for process in self.group(group):
            client = self.server.known.client_of(process.label(), process.node)
            if client in self.server.merged:
                self.server.forget(client)
                self.forgotten.add(group)

    def counted(self) -> Counter[int]:
        return Counter(s for samples in self.server.merged.values() for s in samples)
