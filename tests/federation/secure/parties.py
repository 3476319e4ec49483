"""All parties of a secure sum as objects in this process."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from protocl.federation.secure.protocol.aggregator import Aggregator
from protocl.federation.secure.protocol.agreement import Agreement
from protocl.federation.secure.protocol.identity import (
    Roster,
    Signer,
    new_private_key,
    public_key,
)
from protocl.federation.secure.protocol.keys import (
    ComplaintError,
    Dealing,
    Delivery,
    PublicKeys,
    Revealed,
)
from protocl.federation.secure.protocol.masked_sum import Complaint, masked_sum
from protocl.federation.secure.protocol.participant import Participant
from protocl.federation.secure.protocol.pinned import PinnedParticipant


@lru_cache(maxsize=1)
def private_keys() -> list[bytes]:
    """Long-lived keys of some members, made once."""
    return [new_private_key() for _ in range(13)]


def roster_of(members: int) -> Roster:
    """A roster of the first of them."""
    return Roster({f"member-{i}": public_key(p) for i, p in enumerate(private_keys()[:members])})


class InProcessChannel:
    """A :class:`protocl.federation.secure.protocol.masked_sum.MaskingChannel`, and what ends a sum.

    Args:
        vectors: what each party adds, by identity.
        leave: who leaves before which step (``share``, ``mask``, ``agree`` or ``unmask``).
        idle: who has nothing new.
        roster: which all pin; the parties are its members in their order.
    """

    def __init__(
        self,
        vectors: Mapping[int, NDArray[np.int64]],
        leave: Mapping[str, Collection[int]] | None = None,
        idle: Collection[int] = (),
        roster: Roster | None = None,
    ) -> None:
        self._vectors = vectors
        self.new = set(vectors) - set(idle)
        self._leave = leave or {}
        self._present = set(vectors)
        self.roster = roster
        self.parties: dict[int, Participant] = {}

    def party(self, identity: int, agreement: Agreement) -> Participant:
        """A party of this sum."""
        if self.roster is None:
            return Participant(identity, agreement)
        private = private_keys()[sorted(self._vectors).index(identity)]
        return PinnedParticipant(identity, agreement, Signer(private, self.roster))

    def advertise(self, agreement: Agreement) -> dict[int, PublicKeys]:
        """Make the parties; all of them enrol."""
        self.parties = {identity: self.party(identity, agreement) for identity in self._vectors}
        return {identity: party.advertise() for identity, party in self.parties.items()}

    def share(
        self, rosters: Mapping[int, Mapping[int, PublicKeys]]
    ) -> dict[int, Dealing | Complaint]:
        """Sealed shares of those who stay."""
        answers: dict[int, Dealing | Complaint] = {}
        for i in self._staying("share", rosters):
            try:
                answers[i] = self.parties[i].share(
                    rosters[i], new=i in self.new, enrolled=len(rosters)
                )
            except ComplaintError as complaint:
                answers[i] = complaint.senders
        return answers

    def mask(
        self, deliveries: Mapping[int, Delivery]
    ) -> Iterator[tuple[int, NDArray[np.uint64] | Complaint]]:
        """Masked vectors of those who stay, one at a time."""
        for i in self._staying("mask", deliveries):
            try:
                yield i, self.parties[i].mask(self._vectors[i], deliveries[i])
            except ComplaintError as complaint:
                yield i, complaint.senders

    def agree(self, survivors: Collection[int]) -> dict[int, bytes]:
        """Signatures of those who stay."""
        signatures = {}
        for i in self._staying("agree", survivors):
            party = self.parties[i]
            assert isinstance(party, PinnedParticipant)
            signatures[i] = party.agree(survivors)
        return signatures

    def unmask(self, aggregator: Aggregator) -> dict[int, Revealed]:
        """Shares from those who stay."""
        survivors, signatures = aggregator.survivors, aggregator.signatures
        staying = self._staying("unmask", survivors)
        return {i: self.parties[i].unmask(survivors, signatures) for i in staying}

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
        SecureAggregationError: more left than may, or one broke the protocol.
        TooFewNewError: too few of those who stayed have something new.
    """
    aggregator = Aggregator(agreement, channel.roster)
    masked_sum(aggregator, channel)
    if channel.roster is not None:
        aggregator.collect(channel.agree(aggregator.survivors))
    total = aggregator.unmask(channel.unmask(aggregator))
    return total, aggregator.survivors
