"""How a round is conducted, and which nodes are asked in it."""

from __future__ import annotations

import random
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flwr.app import Message, RecordDict

from protocl.errors import ProtoclError
from protocl.federation.wire.codec import Precision
from protocl.federation.wire.limits import Limits

if TYPE_CHECKING:
    from flwr.serverapp import Grid

_POLL = 0.2


@dataclass
class Options:
    """How a round is conducted.

    Attributes:
        participation: share of the nodes online that is asked in each round, in (0, 1].
        min_clients: nodes that must be online before a round begins.
        wait: seconds to wait for them.
        evaluate: share of the nodes online that evaluate after each round; 0 for none.
        precision: of the merged memory as it is sent to clients.
        limits: what one client may claim and send.
        seed: decides who is asked.

    Example:
        >>> Options(participation=1.5)
        Traceback (most recent call last):
        ValueError: participation=1.5: expected 0 < share <= 1
    """

    participation: float = 1.0
    min_clients: int = 1
    wait: float = 60.0
    evaluate: float = 1.0
    precision: Precision = "exact"
    limits: Limits = field(default_factory=Limits)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.participation <= 1:
            raise ValueError(f"participation={self.participation}: expected 0 < share <= 1")
        if not 0 <= self.evaluate <= 1:
            raise ValueError(f"evaluate={self.evaluate}: expected 0 <= share <= 1")
        if self.min_clients < 1:
            raise ValueError(f"min_clients={self.min_clients}: expected at least 1")


class NotEnoughClientsError(ProtoclError, TimeoutError):
    """Fewer nodes came online than a round needs."""


def choose_nodes(
    grid: Grid, round_number: int, share: float, *, min_clients: int, wait: float, seed: int,
    without: Collection[int] = (),
) -> list[int]:  # fmt: skip
    """Some of the nodes online, ascending.

    Args:
        grid: knows who is online.
        round_number: with ``seed`` decides who is chosen.
        share: of the nodes online, in (0, 1].
        min_clients: nodes that must be online, and the least that are chosen.
        wait: seconds to wait for them.
        seed: see above.
        without: nodes that are not counted.

    Raises:
        NotEnoughClientsError: they did not come.
    """
    nodes = wait_for_nodes(
        grid, min_clients, wait, before=f"round {round_number}", setting="min_clients",
        without=without,
    )  # fmt: skip
    wanted = max(min_clients, round(share * len(nodes)))
    if wanted >= len(nodes):
        return nodes
    return sorted(random.Random(f"{seed}-{round_number}").sample(nodes, wanted))


def wait_for_nodes(
    grid: Grid, fewest: int, wait: float, *, before: str, setting: str,
    without: Collection[int] = (),
) -> list[int]:  # fmt: skip
    """The nodes online, ascending, once there are ``fewest``.

    A ServerApp starts before nodes are registered, so they are waited for.

    Args:
        grid: knows who is online.
        fewest: how many there must be.
        wait: seconds to wait for them.
        before: what waits, for the message.
        setting: name of what ``fewest`` was set by, for the message.
        without: nodes that are not counted.

    Raises:
        NotEnoughClientsError: they did not come.
    """
    end = time.monotonic() + wait
    while len(nodes := sorted(set(grid.get_node_ids()).difference(without))) < fewest:
        if time.monotonic() >= end:
            raise NotEnoughClientsError(
                f"{before}: {len(nodes)} clients online after {wait:g} s, "
                f"{fewest} needed; start more, or lower {setting}"
            )
        time.sleep(_POLL)
    return nodes


def addressed(node: int, kind: str, number: int, content: RecordDict) -> Message:
    """A message of round ``number`` to a node."""
    return Message(content, dst_node_id=node, message_type=kind, group_id=str(number))


def collect_late(grid: Grid) -> list[Message]:
    """Replies to the requests of earlier rounds, where the grid keeps them."""
    collect = getattr(grid, "collect_late", None)
    return [] if collect is None else list(collect())
