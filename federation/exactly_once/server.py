"""The server's side: which client a node is, and which of its contributions are to be merged."""

from __future__ import annotations

import secrets
import sys
from collections import Counter
from typing import Any, Literal, NamedTuple

from protocl.federation.exactly_once.client import (
    MAX_LIVES,
    Label,
    Settled,
    lock_of,
    name_of_life,
    shared_numbers,
)
from protocl.federation.exactly_once.departures import Departures, Tombstone

__all__ = ["PATIENCE", "KnownClients", "Tombstone", "Verdict", "lock_of", "name_of_life"]

PATIENCE = 3
"""Rounds in which one copy of a client must be silent before another may take its place again."""

_REPLACED = sys.maxsize  # the number up to which a life is settled that another one replaced


class Verdict(NamedTuple):
    """What is to become of a contribution.

    Attributes:
        client: whose it is.
        outcome: ``duplicate`` of what is settled; ``merge`` or ``refuse``.
        reason: one word to count refusals by.
        text: why it is refused.
    """

    client: str
    outcome: Literal["merge", "duplicate", "refuse"]
    reason: Literal["format", "sequence", "forgotten", "left", "claimed", "owner"] = "sequence"
    text: str = ""


class KnownClients(Departures):
    """The clients that were heard of, under whichever node and in whichever life.

    A contribution is judged first, and settled once it was merged. What is refused is not settled.

    Attributes (and those of :class:`.Departures`):
        identity: random text that names this state of the server; another one after each restore.
        contributors: clients of which something was merged.
        wants_full: nodes whose next contribution must be their full state.
        refused: node -> why its last contribution was not merged, and until when that holds.
    """

    def __init__(self) -> None:
        self.identity = secrets.token_hex(8)
        self.contributors: set[str] = set()
        self.forgotten: set[str] = set()
        self.left: dict[str, tuple[int, str]] = {}
        self._moves: dict[str, int] = {}
        self.wants_full: set[str] = set()
        self.refused: dict[str, str] = {}
        self._settled: Counter[str] = Counter()  # of a life never heard of nothing is
        self._samples: Counter[str] = Counter()
        self._owners: dict[str, str] = {}  # life -> client
        self._lives: dict[str, tuple[str, ...]] = {}  # client -> its lives, the present one last
        self._heard: dict[str, str] = {}  # node -> life
        self._homes: dict[str, str] = {}  # client -> node
        self._answered: dict[str, int] = {}  # client -> round
        self._locks: dict[str, tuple[str, ...]] = {}  # client -> hashes of its secrets

    # -- questions --------------------------------------------------------------------------

    def terms_for(self, node: str) -> dict[str, str | int | bool]:
        """What a request says to a node of what the server knows of it."""
        settled = self.settled_of(node)
        return {
            "server": self.identity,
            "epoch": settled.epoch,
            "settled": settled.seq,
            "samples": settled.samples,
            "refused": self.refused.get(node, ""),
            "forgotten": self.is_forgotten(node),
            # Of a client never heard of, which may be known to an earlier server.
            "full": not settled.epoch or node in self.wants_full,
            "prove": self.client_at(node) not in self._locks,
        }

    def settled_of(self, node: str) -> Settled:
        """What is settled with a node; of the life that it was last heard in."""
        epoch = self._heard.get(node, "")
        return Settled(epoch, self._settled[epoch], self._samples[self._owners.get(epoch, node)])

    def is_forgotten(self, node: str) -> bool:
        """Whether nothing more is accepted from the client that a node is."""
        client = self.client_at(node) or node
        return client in self.forgotten and client not in self.left

    def client_of(self, label: Label, node: str) -> str:
        """The client of this life, or of the newest before it that is known; else a new one.

        A client that lost its state is known by its node, as long as it is not another node since:
        then who is that node now is somebody else, and takes no name that the other one has.
        """
        lives = (label.epoch, *reversed(label.replaces))
        known = next((self._owners[life] for life in lives if life in self._owners), None)
        client = known or self.client_at(node) or node
        if known is None and self._homes.get(client, node) != node:
            return f"{node}-{label.epoch[:8]}"
        return client

    def client_at(self, node: str) -> str | None:
        """The client that was last heard at a node, unless it was heard elsewhere since."""
        client = self._owners.get(self._heard.get(node, ""))
        return client if client is not None and self._homes.get(client) == node else None

    def _present(self, client: str) -> str:
        """The present life of a client; "" of one never heard of."""
        return self._lives.get(client, ("",))[-1]

    # -- contributions ----------------------------------------------------------------------

    def judge(self, label: Label, node: str, *, replaceable: bool, now: int = 0) -> Verdict:
        """Say what is to become of a contribution; nothing is settled by that.

        Args:
            label: what it says of itself.
            node: that sent it.
            replaceable: whether what a client contributed can be replaced by its full state.
            now: number of the round.
        """
        client = self.client_of(label, node)
        if not label.epoch:
            text = "epoch='': expected a text of the client's own"
            return Verdict(client, "refuse", "format", text)
        if not self._may_speak(label, client, node):
            text = "this life belongs to another node, and its secret was not shown"
            return Verdict(node, "refuse", "owner", text)
        settled = self._settled_for(label, client)
        if label.seq <= settled:
            return Verdict(client, "duplicate")
        if client in self.forgotten and not self._returns(label, client):
            return Verdict(client, "refuse", *self._refusal(client))
        if self._is_claimed(label, client, node, now):
            text = f"another copy of client '{client}' goes on at node {self._homes[client]}"
            return Verdict(client, "refuse", "claimed", text)
        if label.kind == "full":
            return self._judge_full(client, replaceable)
        return self._judge_delta(label, client, node, settled)

    def _judge_full(self, client: str, replaceable: bool) -> Verdict:
        if replaceable or client not in self.contributors:
            return Verdict(client, "merge")
        text = (
            f"client '{client}' sends its full state again, which cannot replace what it "
            "contributed, for keep_contributions=false; what it learns from now on is not counted. "
            "To count everything, begin in an empty folder (keep_contributions=true heals by "
            "itself); all clients then send all they have"
        )
        return Verdict(client, "refuse", "sequence", text)

    def _judge_delta(self, label: Label, client: str, node: str, settled: int) -> Verdict:
        if settled and label.seq == settled + 1:
            return Verdict(client, "merge")
        self.wants_full.add(node)
        text = (
            f"delta {label.seq} of client '{client}' does not follow what is settled "
            f"({settled}); its full state is asked for"
        )
        return Verdict(client, "refuse", "sequence", text)

    def _settled_for(self, label: Label, client: str) -> int:
        """The number up to which a contribution's life is settled, itself or through another.

        0 where nothing is, or the present life of the client went on otherwise than this one.
        """
        if label.epoch in self._owners:
            return self._settled[label.epoch]
        present = self._present(client)
        shared = shared_numbers(label.replaces, label.shares).get(present, 0)
        return self._settled[present] if self._settled[present] <= shared else 0

    def _may_speak(self, label: Label, client: str, node: str) -> bool:
        """Whether a node may send for a client: as its home, as a new one, or with its secret."""
        if self._homes.get(client, node) == node:
            return True
        if not any(life in self._owners for life in (label.epoch, *label.replaces)):
            return True  # a life of its own, under a name that nobody has
        return bool(label.secret) and lock_of(label.secret) in self._locks.get(client, ())

    def _is_claimed(self, label: Label, client: str, node: str, now: int) -> bool:
        """Whether a copy that was replaced by another one comes back while that one answers."""
        present = self._present(client)
        if present in (label.epoch, *label.replaces) or self._homes.get(client) == node:
            return False
        returns = self._owners.get(self._heard.get(node, "")) == client
        return returns and now - self._answered.get(client, 0) < PATIENCE

    def places(self, label: Label, client: str, node: str) -> list[tuple[Any, str]]:
        """Where :meth:`settle` may change something: tables and keys."""
        lives = {label.epoch}
        if label.kind == "full" or label.epoch not in self._owners:
            lives |= {*label.replaces, *self._lives.get(client, ())}
        of_client = (
            self._samples, self._lives, self._homes, self._answered, self._locks, self.contributors,
            self.forgotten, self.left, self._moves,
        )  # fmt: skip
        return [
            *((table, life) for table in (self._settled, self._owners) for life in lives),
            *((table, client) for table in of_client),
            *((table, node) for table in (self._heard, self.refused, self.wants_full)),
        ]

    def settle(self, label: Label, client: str, node: str, samples: int, now: int = 0) -> int:
        """Note a contribution that was merged.

        Args:
            label: what it says of itself.
            client: whose it is.
            node: that sent it.
            samples: how many it holds.
            now: number of the round.

        Returns:
            How many samples the client has contributed less than before: they were newer than the
            snapshot from which it was restored.
        """
        before = self._samples[client]
        if label.kind == "full":
            self._samples[client] = 0
        if label.kind == "full" or label.epoch not in self._owners:
            # All that other lives of the client could still send is in this one.
            self._begin(label, client)
        self._settled[label.epoch] = label.seq
        self._samples[client] += samples
        if label.secret:
            locks = dict.fromkeys((*self._locks.get(client, ()), lock_of(label.secret)))
            self._locks[client] = tuple(locks)[-MAX_LIVES:]
        self._hear(node, client, label.epoch, now)
        self.wants_full.discard(node)
        self.refused.pop(node, None)
        self.contributors.add(client)
        if label.moves:
            self._come_back(client, label.moves)
        return 0 if label.row else max(0, before - self._samples[client])

    def _begin(self, label: Label, client: str) -> None:
        lives = dict.fromkeys((*self._lives.get(client, ()), *label.replaces))
        lives.pop(label.epoch, None)
        for life in lives:
            self._owners.setdefault(life, client)
            self._settled[life] = _REPLACED
        self._owners[label.epoch] = client
        self._lives[client] = (*lives, label.epoch)

    def repeat(self, label: Label, client: str, node: str, now: int = 0) -> None:
        """Note a contribution that was settled before."""
        if self._present(client) == label.epoch:
            self._hear(node, client, label.epoch, now)
        elif label.epoch in self._owners:
            self._heard.setdefault(node, label.epoch)  # to be told that it was replaced

    def refuse(self, node: str, epoch: str, reason: str) -> str:
        """Note why a contribution was not merged, for its sender; the client that it is of."""
        self.refused[node] = reason
        client = self._owners.get(epoch, node)
        return client if self._homes.get(client) == node else node

    def answered(self, node: str, now: int) -> None:
        """Note that a node answered, with something new or without."""
        client = self.client_at(node)
        if client is not None:
            self._answered[client] = now

    def _hear(self, node: str, client: str, epoch: str, now: int) -> None:
        self._heard[node], self._homes[client], self._answered[client] = epoch, node, now

    # -- checkpoints ------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything but the identity, for :meth:`restore`."""
        return {name: value for name, value in vars(self).items() if name != "identity"}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` gave, under another identity.

        Raises:
            ValueError: it holds something else than this version keeps.
        """
        # Which earlier versions did not keep; clients are asked for their secrets anew.
        wanted = self.state().keys() - {"_answered", "_locks", "left", "_moves"}
        if not wanted <= state.keys() <= vars(self).keys():
            raise ValueError(
                "what the checkpoint says of the clients is not of this version; begin the "
                "federation anew, and the clients send everything again"
            )
        vars(self).update(state)
        self.identity = secrets.token_hex(8)
