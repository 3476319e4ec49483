"""Which clients a server has forgotten, and which of them left for another edge."""

from __future__ import annotations

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
    _moves: dict[str, int]  # client -> number of the move by which it came

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
