"""Holding against nodes what they did in secure sums, and leaving them out of others."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from protocl.federation.secure.channel import FlowerChannel
from protocl.federation.secure.protocol.aggregator import Aggregator
from protocl.federation.secure.protocol.agreement import SecureAggregationError
from protocl.federation.secure.protocol.blame import Blame

logger = logging.getLogger(__name__)


def without_named(blame: Blame, nodes: Sequence[int], attempt: int, fewest: int) -> list[int]:
    """Those of ``nodes`` that are asked in an attempt.

    Some of those that are suspected of having spoilt a sum are not, where enough others are there.

    Raises:
        SecureAggregationError: fewer than ``fewest`` are left.
    """
    out = blame.left_out(attempt)
    kept = [node for node in nodes if node not in out]
    if len(kept) < fewest:
        raise SecureAggregationError(
            f"{len(kept)} clients are asked without those that are left out for what they did: "
            f"expected {fewest} or more; left out are {sorted(out)}"
        )
    return blame.to_ask(kept, attempt, fewest)


def name_offenders(
    blame: Blame, aggregator: Aggregator, channel: FlowerChannel, attempt: int
) -> None:
    """Hold against nodes what they did in the last steps of a sum."""
    before = dict(blame.reasons)
    for identity, why in aggregator.refused.items():
        blame.name(channel.speakers[identity], why, attempt)
    blame.strangers |= {channel.speakers[identity] for identity in aggregator.strangers}
    for node, why in channel.senseless.items():
        blame.name(node, why, attempt)
    complaints = {
        channel.nodes[party - 1]: {channel.nodes[sender - 1] for sender in senders}
        for party, senders in aggregator.complaints.items()
    }
    colluders = aggregator.agreement.colluding(len(aggregator.roster))
    blame.judge(complaints, colluders, attempt)
    aggregator.refused, aggregator.complaints, channel.senseless = {}, {}, {}
    for node, why in blame.reasons.items():
        if before.get(node) != why:
            logger.warning("client %d is left out of the next sum: %s", node, why)
