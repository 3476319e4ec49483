"""A secure sum between the moment its shares, or signatures, are asked for and that it is saved.

Whoever has seen enough shares knows the sum, whether the server saved it or not. So all that it
takes to finish it is on disk before the shares are asked for, and a server that died goes on with
this sum before it begins another.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from flwr.serverapp import Grid

from protocl.federation.secure.channel import FlowerChannel
from protocl.federation.secure.progress import Span
from protocl.federation.secure.protocol.aggregator import Aggregator
from protocl.federation.secure.round_channel import RoundChannel

logger = logging.getLogger(__name__)

PATIENCE = 10
"""Rounds in which the shares of a sum are asked for before it is given up."""


@dataclass
class UnfinishedSum:
    """A secure sum whose masked vectors are added up, and whose masks are still on it.

    Attributes:
        aggregator: the server's side of it.
        nodes: the node of each identity, from 1 on, of all who were invited.
        spans: node -> which parts of its data are in the sum.
        noise: the least share of a release's noise that one of the vectors holds.
        rounds: in which shares were asked for.
    """

    aggregator: Aggregator
    nodes: Sequence[int]
    spans: Mapping[int, Span]
    noise: Fraction
    rounds: int = 0

    @classmethod
    def of(cls, aggregator: Aggregator, channel: RoundChannel) -> UnfinishedSum:
        """The sum that was made over ``channel``."""
        survivors = aggregator.survivors
        return cls(
            aggregator,
            list(channel.nodes),
            {channel.nodes[i - 1]: channel.spans[i] for i in survivors},
            min(channel.noise[i] for i in survivors),
        )

    @property
    def contributors(self) -> int:
        """How many vectors are in it."""
        return len(self.spans)

    @property
    def hopeless(self) -> bool:
        """Whether its parties were asked often enough."""
        return self.rounds >= PATIENCE

    def channel(self, grid: Grid, round_number: int, timeout: float) -> FlowerChannel:
        """How to ask for the shares in a later round.

        A party may have become another node since, so all others online are asked as well.
        """
        others = sorted(set(grid.get_node_ids()) - set(self.nodes))
        return FlowerChannel(grid, round_number, [*self.nodes, *others], timeout)
