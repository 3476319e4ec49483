"""Which parts of whose data are in a sum whose terms the server does not know."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from protocl.errors import DataError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Span(NamedTuple):
    """The parts of a client's data from ``start`` on and before ``end``."""

    start: int
    end: int


@dataclass
class SummedParts:
    """How many parts of each client's data are in the sum.

    A client draws a random identity once and sends it along, for a SuperNode that is started again
    without a key is another node to Flower. Its first offer under the new node is left out, and
    from the next round on it is asked for what follows.

    Attributes:
        parts: node -> number of parts that it is not asked for again.
        lost: node -> how many of these are in no sum that this server has, and never will be: they
            were in a sum that was given up, or that another state of the server has.
        nodes: identity of a client -> the node that it was last.
        unfinished: node -> sessions of the sums for which it was asked for its masked vector, and
            whose shares nobody was asked for while its vector was in them. It is told them: what
            was given to any other sum is not given again, since two sums tell by their difference
            what single clients sent.
    """

    parts: dict[int, int] = field(default_factory=dict)
    lost: dict[int, int] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    unfinished: dict[int, list[str]] = field(default_factory=dict)

    def of(self, node: int) -> int:
        """Number of parts of the client that ``node`` is, 0 where it is not known."""
        return self.parts.get(node, 0)

    def clients(self) -> dict[int, str]:
        """Node -> identity of the client that it is, of those that are known."""
        return {node: client for client, node in self.nodes.items()}

    def recognise(self, client: str, node: int, start: int) -> None:
        """Note which node a client is, and that it offers the parts from ``start`` on.

        What it does not offer any more, and is not in the sum, is lost.

        Raises:
            DataError: some of them are in the sum.
        """
        before = self.nodes.get(client, node)
        if before != node:
            _move(self.parts, before, node)
            _move(self.lost, before, node)
            _move(self.unfinished, before, node)
        self.nodes[client] = node
        if start > self.of(node):
            logger.warning(
                "client %d: its parts %d to %d were given to a sum that this server does not have, "
                "and are lost to it", node, self.of(node), start - 1,
            )  # fmt: skip
            self._lose(node, start - self.of(node))
            self.parts[node] = start
        if start < self.of(node):
            raise DataError(
                f"it offers its data from part {start} on, the sum holds {self.of(node)} parts; "
                "it is asked for what follows in the next round"
            )

    def ask(self, node: int, session: str) -> list[str]:
        """Note that ``node`` is asked for its masked vector; the sums that lack it."""
        lacking = self.unfinished.setdefault(node, [])
        lacking.append(session)
        return lacking

    def spend(self, nodes: Mapping[int, Span]) -> None:
        """Note that shares are asked for with the vectors of ``nodes`` in the sum."""
        for node in nodes:
            self.unfinished.pop(node, None)

    def add(self, spans: Mapping[int, Span]) -> None:
        """Note which parts of each node's data are in the sum now."""
        for node, (_, end) in spans.items():
            self.parts[node] = end
        self.spend(spans)

    def lose(self, spans: Mapping[int, Span]) -> int:
        """Note which parts will never be in the sum; how many clients lose some by it."""
        losers = [node for node, (start, end) in spans.items() if end > start]
        for node in losers:
            end = spans[node].end
            self._lose(node, end - self.of(node))
            self.parts[node] = end
        self.spend(spans)
        return len(losers)

    def _lose(self, node: int, parts: int) -> None:
        self.lost[node] = self.lost.get(node, 0) + parts


def _move(known: dict[int, T], before: int, node: int) -> None:
    if before in known:
        known[node] = known.pop(before)
