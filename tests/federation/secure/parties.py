"""All parties of a secure sum as objects in this process."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from protocl.federation.secure.aggregator import masked_sum
from protocl.federation.secure.keys import Agreement, PublicKeys, Revealed
from protocl.federation.secure.participant import Participant


class InProcessChannel:
    """A :class:`protocl.federation.secure.aggregator.MaskingChannel`, and the step that ends a sum.

    Args:
        vectors: what each party adds, by identity.
        leave: who leaves before which step (``share``, ``mask`` or ``unmask``).
        idle: who has nothing new.
    """

    def __init__(
        self,
        vectors: Mapping[int, NDArray[np.int64]],
        leave: Mapping[str, Collection[int]] | None = None,
        idle: Collection[int] = (),
    ) -> None:
        self._vectors = vectors
        self.new = set(vectors) - set(idle)
        self._leave = leave or {}
        self._present = set(vectors)
        self.parties: dict[int, Participant] = {}

    def advertise(self, agreement: Agreement) -> dict[int, PublicKeys]:
        """Make the parties; all of them enrol."""
        self.parties = {identity: Participant(identity, agreement) for identity in self._vectors}
        return {identity: party.advertise() for identity, party in self.parties.items()}

    def share(self, roster: Mapping[int, PublicKeys]) -> dict[int, dict[int, bytes]]:
        """Sealed shares of those who stay."""
        return {
            i: self.parties[i].share(roster, new=i in self.new)
            for i in self._staying("share", roster)
        }

    def mask(
        self, deliveries: Mapping[int, Mapping[int, bytes]]
    ) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """Masked vectors of those who stay, one at a time."""
        for i in self._staying("mask", deliveries):
            yield i, self.parties[i].mask(self._vectors[i], deliveries[i])

    def unmask(self, survivors: list[int]) -> dict[int, Revealed]:
        """Shares from those who stay."""
        return {i: self.parties[i].unmask(survivors) for i in self._staying("unmask", survivors)}

    def _staying(self, step: str, asked: Collection[int]) -> list[int]:
        self._present -= set(self._leave.get(step, ()))
        return [identity for identity in asked if identity in self._present]


def secure_sum(
    agreement: Agreement, channel: InProcessChannel
) -> tuple[NDArray[np.int64], list[int]]:
    """Run one sum from the server.

    Returns:
        the sum ``(size,)`` and the identities of those whose vectors it is the sum of.

    Raises:
        SecureAggregationError: more than a third of the enrolled left, or one broke the protocol.
        TooFewNewError: too few of those who stayed have something new.
    """
    aggregator = masked_sum(agreement, channel)
    total = aggregator.unmask(channel.unmask(aggregator.survivors))
    return total, aggregator.survivors
