"""What an edge may claim and send: one client's limits times its clients."""

from __future__ import annotations

from dataclasses import replace

from protocl.federation.wire.limits import WIDEST, Limits


def limits_of_edge(limits: Limits, clients: int) -> Limits:
    """Limits of the row of an edge; of second moments a row has two words.

    Args:
        limits: of one client.
        clients: that an edge has at most.

    Example:
        >>> limits_of_edge(Limits(max_count=5, max_classes_in_all=30_000), 4).max_count
        20
    """
    return replace(
        limits,
        max_bytes=min(limits.max_bytes * clients, WIDEST),
        max_classes=min(limits.max_classes * clients, limits.max_classes_in_all),
        max_count=min(limits.max_count * clients, WIDEST),
        max_clients=max(1, limits.max_clients // clients),
    )


def share_of(number: int, edges: int, clients: int) -> range:
    """The clients of an edge, of as many at each as can be.

    >>> [share_of(number, 3, 10) for number in range(3)]
    [range(0, 4), range(4, 7), range(7, 10)]
    """
    each, more = divmod(clients, edges)
    start = number * each + min(number, more)
    return range(start, start + each + (number < more))
