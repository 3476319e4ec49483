"""Which parts of whose data are in a sum whose terms the server does not know."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from protocl.errors import DataError

T = TypeVar("T")


@dataclass
class SummedParts:
    """How many parts of each client's data are in the sum.

    A client draws a random identity once and sends it along, for a SuperNode that is started again
    without a key is another node to Flower. Its first offer under the new node is left out, and
    from the next round on it is asked for what follows.

    Attributes:
        parts: node -> number of parts.
        nodes: identity of a client -> the node that it was last.
        unfinished: node -> sessions of the sums for which it was asked for its masked vector, and
            which did not come about, or without it. It is told them: a client that gave its vector
            for any other sum does not give it again, since two sums tell by their difference what
            single clients sent.
    """

    parts: dict[int, int] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    unfinished: dict[int, list[str]] = field(default_factory=dict)

    def of(self, node: int) -> int:
        """Number of parts of the client that ``node`` is, 0 where it is not known."""
        return self.parts.get(node, 0)

    def recognise(self, client: str, node: int, start: int) -> None:
        """Note which node a client is, and that it offers the parts from ``start`` on.

        Raises:
            DataError: the parts before are not those in the sum.
        """
        before = self.nodes.get(client, node)
        if before != node:
            _move(self.parts, before, node)
            _move(self.unfinished, before, node)
        self.nodes[client] = node
        if start != self.of(node):
            raise DataError(
                f"it offers its data from part {start} on, the sum holds {self.of(node)} parts; "
                "it is asked for what follows in the next round"
            )

    def ask(self, node: int, session: str) -> list[str]:
        """Note that ``node`` is asked for its masked vector; the sums that lack it."""
        lacking = self.unfinished.setdefault(node, [])
        lacking.append(session)
        return lacking

    def add(self, ends: dict[int, int]) -> None:
        """Note up to which part each node's data are in the sum now."""
        self.parts |= ends
        for node in ends:
            self.unfinished.pop(node, None)


def _move(known: dict[int, T], before: int, node: int) -> None:
    if before in known:
        known[node] = known.pop(before)
