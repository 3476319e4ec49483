"""Which clients a server has forgotten, and which of them left for another edge."""

from __future__ import annotations

from collections import Counter
from typing import Literal, NamedTuple

from protocl.federation.exactly_once.client import Label, name_of_life
from protocl.federation.exactly_once.release import Release


class Tombstone(NamedTuple):
    """Who was forgotten: its name, the node at which it was heard last, its lives.

    Of one that left for another edge also the number of the move, the edge, and the hashes of its
    secrets, by which it is known when it comes back.
    """

    client: str
    node: str
    lives: tuple[str, ...]
    number: int = 0
    target: str = ""
    locks: tuple[str, ...] = ()

    def release(self, source: str) -> Release:
        """What edge ``source`` gives along to one that leaves."""
        lives = tuple(map(name_of_life, self.lives))
        return Release(self.client, lives, self.number, source, self.target)


class Departures:
    """The clients that are gone.

    Attributes:
        forgotten: clients of which nothing more is accepted.
        left: of these the ones that left for another edge -> number of the move, edge.
    """

    forgotten: set[str]
    left: dict[str, tuple[int, str]]
    contributors: set[str]
    _moves: dict[str, int]  # client -> number of the move by which it came
    _settled: Counter[str]
    _samples: Counter[str]
    _owners: dict[str, str]  # life -> client
    _lives: dict[str, tuple[str, ...]]  # client -> its lives, the present one last
    _heard: dict[str, str]  # node -> life
    _homes: dict[str, str]  # client -> node
    _answered: dict[str, int]  # client -> round
    _locks: dict[str, tuple[str, ...]]  # client -> hashes of its secrets

    def _returns(self, label: Label, client: str) -> bool:
        """Whether a client that left shows the release of an edge to which it went since."""
        return client in self.left and label.moves > self.left[client][0]

    def _refusal(self, client: str) -> tuple[Literal["forgotten", "left"], str]:
        """Why nothing is accepted from a client that is gone: one word, and the text."""
        if client not in self.left:
            return "forgotten", f"client '{client}' was forgotten"
        return "left", f"client '{client}' left for edge '{self.left[client][1]}'"

    def _come_back(self, client: str, number: int) -> None:
        self._moves[client] = max(number, self._moves.get(client, 0))
        if self.left.pop(client, None) is not None:
            self.forgotten.discard(client)

    def forget(self, client: str) -> Tombstone:
        """Accept nothing more from a client; what another state of the server must be told."""
        self.forgotten.add(client)
        self.left.pop(client, None)
        return Tombstone(client, self._homes.get(client, ""), self._lives.get(client, ()))

    def leave(self, client: str, target: str) -> Tombstone:
        """Accept nothing more from a client before it comes back from where it goes.

        Args:
            client: of which nothing counts any more.
            target: name of the edge to which it goes.
        """
        number = self._moves.get(client, 0) + 1
        number, target = self.left.get(client, (number, target))
        node, lives = self._homes.get(client, ""), self._lives.get(client, ())
        self._let_go(client, number, target)
        return Tombstone(client, node, lives, number, target, self._locks.get(client, ()))

    def _let_go(self, client: str, number: int, target: str) -> None:
        self.forgotten.add(client)
        self.left[client] = (number, target)
        self._homes[client] = ""  # whoever is at its node from now on is somebody else

    def bury(self, tombstone: Tombstone) -> set[str]:
        """Forget who was forgotten in another state of the server, under whichever names here.

        Returns:
            Those names; of one that left and came back since none.
        """
        client, node, lives, number, target, locks = tombstone
        names = {self._owners[life] for life in lives if life in self._owners}
        if not names:
            # Not heard of yet, and known by its lives and its node from now on.
            names = {f"{client}-{lives[0][:8]}" if client in self._lives else client}
            self._owners |= dict.fromkeys(lives, *names)
            self._lives[min(names)] = tuple(lives)
            if node not in self._heard:
                self._heard[node], self._homes[min(names)] = lives[-1], node
        if target:
            names = {name for name in names if self._moves.get(name, 0) < number}
            for name in names:
                self._locks.setdefault(name, tuple(locks))
                self._let_go(name, number, target)
        else:
            for name in names:
                self.left.pop(name, None)
        self.forgotten |= names
        return names

    def unlearn(self, client: str) -> None:
        """Know nothing of a client, as if it had never been heard; but for who may speak for it."""
        lives = self._lives.pop(client, ())
        for life in lives:
            self._owners.pop(life, None)
            self._settled.pop(life, None)
        for node in [node for node, life in self._heard.items() if life in lives]:
            self._heard.pop(node)
        for table in (self._samples, self._homes, self._answered):
            table.pop(client, None)
        self.contributors.discard(client)
