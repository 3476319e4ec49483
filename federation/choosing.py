"""Which nodes are asked in a round."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from protocl.errors import ProtoclError

if TYPE_CHECKING:
    from flwr.serverapp import Grid

_POLL = 0.2


class NotEnoughClientsError(ProtoclError, TimeoutError):
    """Fewer nodes came online than a round needs."""


def choose_nodes(
    grid: Grid, round_number: int, share: float, *, min_clients: int, wait: float, seed: int
) -> list[int]:
    """Some of the nodes online, ascending.

    Args:
        grid: knows who is online. The ServerApp starts before nodes are registered, so they are
            waited for.
        round_number: with ``seed`` decides who is chosen.
        share: of the nodes online, in (0, 1].
        min_clients: nodes that must be online, and the least that are chosen.
        wait: seconds to wait for them.
        seed: see above.

    Raises:
        NotEnoughClientsError: they did not come.
    """
    end = time.monotonic() + wait
    while len(nodes := sorted(grid.get_node_ids())) < min_clients:
        if time.monotonic() >= end:
            raise NotEnoughClientsError(
                f"round {round_number}: {len(nodes)} clients online after {wait:g} s, "
                f"{min_clients} needed; start more, or lower min_clients"
            )
        time.sleep(_POLL)
    wanted = max(min_clients, round(share * len(nodes)))
    if wanted >= len(nodes):
        return nodes
    return sorted(random.Random(f"{seed}-{round_number}").sample(nodes, wanted))
