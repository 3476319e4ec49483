"""One secure sum, conducted from the server up to the moment before its masks come off."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protocl.federation.secure.protocol.aggregator import Aggregator
from protocl.federation.secure.protocol.agreement import Agreement
from protocl.federation.secure.protocol.keys import Dealing, Delivery, PublicKeys

Complaint = frozenset[int]
"""What a party answers instead, if others sent it what cannot be used: their identities."""


class MaskingChannel(Protocol):
    """How the server reaches the parties. Those who do not answer are missing from the results."""

    @property
    def new(self) -> Collection[int]:
        """Parties that enrolled and say that they have something new."""

    def advertise(self, agreement: Agreement) -> Mapping[int, PublicKeys]:
        """Invite all parties to send their public keys."""

    def share(
        self, rosters: Mapping[int, Mapping[int, PublicKeys]]
    ) -> Mapping[int, Dealing | Complaint]:
        """Give everybody who enrolled the keys of those that it shares with."""

    def mask(
        self, deliveries: Mapping[int, Delivery]
    ) -> Iterable[tuple[int, NDArray[np.uint64] | Complaint]]:
        """Give every recipient what was dealt to it; the masked vectors as they come."""


def masked_sum(aggregator: Aggregator, channel: MaskingChannel) -> None:
    """Run one sum from the server until all vectors are added up.

    Nobody's vector can be told afterwards, for the survivors have signed nothing and have not been
    asked for their shares.
    Where it fails, the aggregator knows of whom there were complaints.

    Raises:
        SecureAggregationError: more left than may.
        TooFewNewError: too few of those who stayed have something new.
    """
    replies = channel.advertise(aggregator.agreement)
    shared = channel.share(aggregator.enrol(replies, channel.new))
    dealt = {}
    for party, answer in shared.items():
        if isinstance(answer, Dealing):
            dealt[party] = answer
        else:
            aggregator.complain(party, answer)
    for party, given in channel.mask(aggregator.deliver(dealt)):
        if isinstance(given, frozenset):
            aggregator.complain(party, given)
        else:
            aggregator.add(party, given)
    aggregator.require_survivors()
