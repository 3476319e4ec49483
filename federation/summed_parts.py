"""Which parts of whose data are in a sum whose terms the server does not know."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocl.errors import DataError


@dataclass
class SummedParts:
    """How many parts of each client's data are in the sum.

    A client draws a random identity once and sends it along, for a SuperNode that is started again
    without a key is another node to Flower. Its first offer under the new node is left out, and
    from the next round on it is asked for what follows.

    Attributes:
        parts: node -> number of parts.
        nodes: identity of a client -> the node that it was last.
        unfinished: nodes that were asked for a masked vector, for a sum that did not come about or
            without it. They are told so: a client does not give a vector into a second sum
            otherwise, since two sums tell by their difference what single clients sent.
    """

    parts: dict[int, int] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    unfinished: set[int] = field(default_factory=set)

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
            if before in self.parts:
                self.parts[node] = self.parts.pop(before)
            if before in self.unfinished:
                self.unfinished.remove(before)
                self.unfinished.add(node)
        self.nodes[client] = node
        if start != self.of(node):
            raise DataError(
                f"it offers its data from part {start} on, the sum holds {self.of(node)} parts; "
                "it is asked for what follows in the next round"
            )

    def add(self, ends: dict[int, int]) -> None:
        """Note up to which part each node's data are in the sum now."""
        self.parts |= ends
        self.unfinished -= ends.keys()
