"""A root, edges and their clients, between which anything may go wrong; samples are numbers."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

from protocl.federation.exactly_once.client import Settled
from protocl.federation.exactly_once.edge import Standing
from protocl.federation.exactly_once.release import Release
from tests.federation.exactly_once.world import Process, Reply, Request, Sent, Server


@dataclass
class Traveller(Process):
    """A process that may be at any edge.

    Attributes:
        place: name of the edge that its node talks to.
        release: with which it moved last; not a part of the state.
    """

    place: str = ""
    release: Release | None = None

    def answer(self, terms: dict[str, Any]) -> Reply:
        """Nothing at an edge that must not count it."""
        life, release = self.state.life, self.release
        if not life.arrive(self.place, release):
            return Reply(self.node, [])
        self.state.keep()
        reply = super().answer(terms)
        shown = release if release and life.proves and release.target == self.place else None
        moves = shown.number if shown else 0
        return Reply(reply.node, [sent._replace(moves=moves) for sent in reply.contributions])


class Edge:
    """A server, and what it is to the root."""

    def __init__(self, name: str, server: Server) -> None:
        self.name, self.server = name, server
        self.standing, self.row = Standing(), ()
        self.known: tuple[str, int] | None = None

    def samples(self) -> tuple[int, ...]:
        return tuple(sorted(s for part in self.server.merged.values() for s in part))

    def answer(self, terms: dict[str, Any]) -> Reply:
        life = self.standing.life
        if self.known != (life.epoch, life.seq):
            life.take_up()
        heard = Settled(terms["epoch"], terms["settled"], terms["samples"])
        self.standing.hear(terms["server"], heard, terms["prove"])
        now, gone = self.samples(), len(self.server.tombstones)
        if self.standing.state(len(now), gone, changed=bool(life.pending) or now != self.row):
            self.row = now
        self.known = (life.epoch, life.seq)
        secret = life.secret if life.proves else ""
        return Reply(
            self.name,
            [
                Sent(
                    life.epoch, p.seq, p.kind, life.replaces, life.shares, self.row, secret,
                    row=True,
                )
                for p in life.pending
            ],
        )  # fmt: skip

    def leave(self, client: str, target: str) -> int:
        """The place of the tombstone in the list of withdrawals."""
        self.server.tombstones.append(self.server.known.leave(client, target))
        self.server.merged.pop(client)
        return len(self.server.tombstones) - 1

    def backup(self) -> Any:
        return self.server.backup(), copy.deepcopy((self.standing, self.row))

    def restored(self, backup: Any) -> Edge:
        """Another process."""
        edge = Edge(self.name, self.server.restored(backup[0]))
        edge.standing, edge.row = copy.deepcopy(backup[1])
        return edge


class Tree:
    def __init__(self, edges: int, clients: int) -> None:
        self.root = Server()
        self.edges = {f"e{n}": Edge(f"e{n}", Server()) for n in range(edges)}
        self.processes = [
            Traveller(n, f"n{n}", place=f"e{n % edges}") for n in range(clients)
        ]  # fmt: skip
        self.backups = {name: [edge.backup()] for name, edge in self.edges.items()}
        self.root_backups = [self.root.backup()]
        self.requests: list[tuple[str, Request]] = []
        self.replies: list[tuple[str, Reply]] = []
        self.asked: list[tuple[int, str, int]] = []  # group, edge, place of the tombstone
        self.releases: dict[int, list[Release]] = {}
        self.forgotten: set[int] = set()
        self.set_back = False
        self._nodes, self._samples = clients, 0

    def new_node(self) -> str:
        self._nodes += 1
        return f"n{self._nodes - 1}"

    def learn(self, process: Traveller) -> None:
        process.waiting += (self._samples,)
        self._samples += 1

    def group(self, number: int) -> list[Traveller]:
        return [p for p in self.processes if p.group == number]

    # -- messages: of clients to their edges, of edges to the root ("") ----------------------

    def servers(self) -> list[str]:
        return ["", *self.edges]

    def server(self, name: str) -> Server:
        return self.edges[name].server if name else self.root

    def askers(self, name: str) -> list[Traveller | Edge]:
        if not name:
            return list(self.edges.values())
        return [p for p in self.processes if p.place == name]

    def exchange(self, name: str, one: Traveller | Edge) -> None:
        node = one.name if isinstance(one, Edge) else one.node
        self.take(name, one.answer(self.server(name).known.terms_for(node)))

    def take(self, name: str, reply: Reply) -> None:
        self.server(name).take(reply)

    def answer(self, name: str, request: Request) -> Reply | None:
        for one in self.askers(name):
            if (one.name if isinstance(one, Edge) else one.node) == request.node:
                return one.answer(request.terms)
        return None

    def round(self) -> None:
        for name in (*self.edges, ""):
            self.server(name).now += 1
            for one in self.askers(name):
                self.exchange(name, one)

    # -- clients that move, and are forgotten -----------------------------------------------

    def client_at(self, process: Traveller) -> str | None:
        server = self.edges[process.place].server
        client = server.known.client_of(process.label(), process.node)
        there = client in server.merged and client not in server.known.forgotten
        return client if there else None

    def ask_release(self, process: Traveller, target: str) -> None:
        client = self.client_at(process)
        if client is not None and target != process.place:
            place = self.edges[process.place].leave(client, target)
            self.asked.append((process.group, process.place, place))

    def collect_releases(self) -> None:
        """Give out what the root is without."""
        for group, name, place in list(self.asked):
            edge = self.edges[name]
            if edge.standing.withdrawn > place:
                release = edge.server.tombstones[place].release(name)
                self.releases.setdefault(group, []).append(release)
                self.asked.remove((group, name, place))

    def move(self, process: Traveller, keep_node: bool) -> None:
        """To where the newest release leads."""
        if process.group in self.releases:
            newest = max(self.releases[process.group], key=lambda r: r.number)
            if process.place != newest.target:
                process.place, process.known = newest.target, None
                process.node = process.node if keep_node else self.new_node()
            process.release = newest

    def forget(self, group: int) -> None:
        for process in self.group(group):
            client = self.client_at(process)
            if client is not None:
                self.edges[process.place].server.forget(client)
                self.forgotten.add(group)

    def counted(self, name: str = "") -> Counter[int]:
        return Counter(s for part in self.server(name).merged.values() for s in part)
