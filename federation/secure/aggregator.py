"""Sums of vectors of which the server sees nothing but the sum.

The protocol of Bonawitz et al., "Practical secure aggregation for privacy-preserving machine
learning" (CCS 2017), figure 4 without the parts against an active adversary, on integers modulo
2^64. In four steps, each a message to every party and its answer:

1. *advertise*: each party sends two X25519 keys; the server passes on all of them.
2. *share*: each party splits its masking key and the seed of its own mask into Shamir shares, one
   for each party, sealed for it, and says with them whether it has something new. All but a third
   of the parties can join the shares again.
3. *mask*: each party sends its vector plus its own mask, plus or minus one mask for each other
   party that shared. The server adds up what arrives; masks of pairs cancel.
4. *unmask*: each party gives its shares of the own masks of those whose vectors arrived, and of
   the masking keys of those whose vectors did not. The server removes these masks from the sum.

Up to a third of the parties may leave, at any points, as long as two more than may collude
(:meth:`Agreement.colluding`) have something new and stay. Parties without anything new add zeros;
the others count for themselves who has, before they give a vector and before they give a share.

A sum whose parties were asked for their shares is never begun again with other parties, for the
difference of two sums would tell of those that are in one of them. It is finished, by asking the
same parties for the same shares, or given up with all that is in it
(:mod:`protocl.federation.secure.unfinished_sum`).

Masks are ChaCha20 streams under 256-bit keys (Flower's SecAgg+ has 32 bits of entropy in a mask).
Overflow cannot happen unnoticed: see :attr:`Agreement.largest`.

Threat model. The server and fewer parties than the threshold (two thirds of the enrolled, rounded
up) may pool all they see, and learn of the others' vectors only their sum, provided that they
follow the protocol. Channels are authenticated and the server passes keys on as they are: a server
that forges keys or tells different parties different survivors can break it, for which the paper
has signatures and a consistency check. A party can send wrong statistics (nobody sees them, so
robust merging does not apply) and can make a sum fail; a wrong share is noticed, and done without
where enough others came. The class list, who takes part and when, who has something new, and the
sum itself are not hidden; noise on it is the business of :mod:`protocl.federation.privacy.release`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from protocl.federation.privacy.prg import KeyStream
from protocl.federation.secure.keys import (
    SMALLEST_GROUP,
    Agreement,
    PublicKeys,
    Revealed,
    SecureAggregationError,
    adds_mask,
    pairwise_mask,
)
from protocl.federation.secure.shamir import SharingError, join_shares

logger = logging.getLogger(__name__)


class Aggregator:
    """The server's side of one sum.

    It holds public keys, sealed shares that it passes on, and one vector: the sum of the masked
    vectors so far. No method takes or returns a party's statistics in the clear.

    Args:
        agreement: the terms.
    """

    def __init__(self, agreement: Agreement) -> None:
        self.agreement = agreement
        self.roster: dict[int, PublicKeys] = {}
        self._new: set[int] = set()
        self._liars: set[int] = set()
        self._sharers: set[int] = set()
        self._survivors: set[int] = set()
        self._revealed: dict[int, Revealed] = {}
        self._total = np.zeros(agreement.size, dtype=np.uint64)

    @property
    def survivors(self) -> list[int]:
        """Parties whose masked vectors are in the sum."""
        return sorted(self._survivors)

    @property
    def waiting_for(self) -> list[int]:
        """Survivors that have not given their shares yet."""
        return sorted(self._survivors - set(self._revealed))

    def enrol(
        self, replies: Mapping[int, PublicKeys], new: Collection[int]
    ) -> dict[int, PublicKeys]:
        """After step 1: the roster that all who enrolled get.

        Args:
            replies: keys by identity. Keys that two parties gave are those of neither.
            new: identities of those who say that they have something new.

        Raises:
            SecureAggregationError: they are too few.
            TooFewNewError: those who have something new are.
        """
        given = Counter(key for keys in replies.values() for key in (keys.sealing, keys.masking))
        copied = {key for key, times in given.items() if times > 1}
        for party, keys in replies.items():
            if copied.isdisjoint((keys.sealing, keys.masking)):
                self.roster[party] = keys
            else:
                logger.warning("%d enrolled with a key that another one has; left out", party)
        if len(self.roster) < SMALLEST_GROUP:
            raise SecureAggregationError(
                f"{len(self.roster)} parties enrolled: expected {SMALLEST_GROUP} or more"
            )
        self._new = set(new)
        self._require_new(self.roster, "enrolled")
        return self.roster

    def deliver(self, replies: Mapping[int, Mapping[int, bytes]]) -> dict[int, dict[int, bytes]]:
        """After step 2: for each party that shared, the sealed shares from the others.

        Args:
            replies: by sender, the sealed shares by recipient.

        Raises:
            SecureAggregationError: too few parties shared with each of the others.
            TooFewNewError: those of them who have something new are too few.
        """
        for sender in self._known(replies, among=self.roster):
            if set(replies[sender]) == set(self.roster) - {sender}:
                self._sharers.add(sender)
            else:
                logger.warning("%d did not share with each of the others; left out", sender)
        self._require_enough(len(self._sharers), "shared")
        self._require_new(self._sharers, "shared")
        return {
            recipient: {
                sender: replies[sender][recipient]
                for sender in sorted(self._sharers)
                if sender != recipient
            }
            for recipient in sorted(self._sharers)
        }

    def add(self, party: int, masked: NDArray[np.uint64]) -> None:
        """During step 3: add a masked vector; it is not kept.

        Raises:
            SecureAggregationError: the party did not share or has sent a vector before, or this is
                no vector of the agreed size.
        """
        if party not in self._sharers or party in self._survivors or self._revealed:
            raise SecureAggregationError(f"a vector from {party} is not expected; it was not added")
        if masked.shape != self._total.shape or masked.dtype != np.uint64:
            raise SecureAggregationError(
                f"a vector of shape {masked.shape} and type {masked.dtype} from {party}: "
                f"expected {self._total.shape} uint64; it was not added"
            )
        self._total += masked
        self._survivors.add(party)

    def require_survivors(self) -> list[int]:
        """After step 3: the survivors, whom all of them are told.

        Raises:
            SecureAggregationError: they are too few to remove the masks.
            TooFewNewError: those of them who have something new are too few.
        """
        self._require_enough(len(self._survivors), "sent a vector")
        self._require_new(self._survivors, "sent a vector")
        return self.survivors

    def unmask(self, replies: Mapping[int, Revealed]) -> NDArray[np.int64]:
        """After step 4: the sum of the survivors' vectors, ``(size,)``.

        Where it fails, it can be called again with what others answer later.

        Raises:
            SecureAggregationError: too few parties answered so far, or shares are wrong.
        """
        self._known(replies, among=self._survivors)
        self._revealed |= replies
        self._require_enough(len(self._revealed), "gave their shares")
        total = self._total.copy()
        try:
            for party in self.survivors:
                KeyStream(self._seed(party)).add_to(total, negative=True)
            for party in sorted(self._sharers - self._survivors):
                self._remove_pairwise(total, party, self._masking_key(party))
        except SecureAggregationError:
            if not self.waiting_for:
                self._revealed = {}  # all are asked once more, some of whom were not themselves
            raise
        return total.view(np.int64)

    def _remove_pairwise(
        self, total: NDArray[np.uint64], gone: int, private: X25519PrivateKey
    ) -> None:
        """Take out of ``total`` what the survivors added for a party that is gone."""
        for survivor in self.survivors:
            mask = pairwise_mask(private, self.roster[survivor].masking, self.agreement)
            mask.add_to(total, negative=adds_mask(survivor, gone))

    def _seed(self, party: int) -> bytes:
        shares = {p: r.seeds[party] for p, r in self._revealed.items() if party in r.seeds}
        commitment = self.roster[party].commitment
        return self._join(shares, party, lambda seed: self.agreement.commitment(seed) == commitment)

    def _masking_key(self, party: int) -> X25519PrivateKey:
        shares = {p: r.keys[party] for p, r in self._revealed.items() if party in r.keys}
        public = self.roster[party].masking
        secret = self._join(shares, party, lambda key: _public(key) == public)
        return X25519PrivateKey.from_private_bytes(secret)

    def _join(
        self, shares: Mapping[int, bytes], party: int, matches: Callable[[bytes], bool]
    ) -> bytes:
        """The secret of ``party``; without one party's share if that is what makes them match."""
        honest = {p: share for p, share in shares.items() if p not in self._liars}
        threshold = self.agreement.threshold(len(self.roster))
        for liar in (None, *honest):
            try:
                secret = join_shares({p: s for p, s in honest.items() if p != liar}, threshold)
            except SharingError:
                continue
            if matches(secret):
                self._suspect(liar)
                return secret
        raise self._wrong_shares(party)

    def _suspect(self, liar: int | None) -> None:
        if liar is not None:
            logger.warning("%d gave a wrong share; its shares are left out", liar)
            self._liars.add(liar)

    def _wrong_shares(self, party: int) -> SecureAggregationError:
        return SecureAggregationError(
            f"the shares of {party} do not give what it committed to: a party gave a wrong share, "
            "or none; the shares of others may do"
        )

    def _known(self, replies: Iterable[int], among: Iterable[int]) -> set[int]:
        strangers = set(replies) - set(among)
        if strangers:
            raise SecureAggregationError(f"answers from {sorted(strangers)} were not expected")
        return set(replies)

    def _require_enough(self, number: int, did: str) -> None:
        needed = self.agreement.threshold(len(self.roster))
        if number < needed:
            raise SecureAggregationError(
                f"{number} of {len(self.roster)} parties {did}: {needed} are needed to go on"
            )

    def _require_new(self, parties: Iterable[int], did: str) -> None:
        self.agreement.require_new(len(self._new.intersection(parties)), len(self.roster), did)


def _public(masking_key: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(masking_key).public_key().public_bytes_raw()


class MaskingChannel(Protocol):
    """How the server reaches the parties. Those who do not answer are missing from the results."""

    @property
    def new(self) -> Collection[int]:
        """Parties that enrolled and say that they have something new."""

    def advertise(self, agreement: Agreement) -> Mapping[int, PublicKeys]:
        """Invite all parties to send their public keys."""

    def share(self, roster: Mapping[int, PublicKeys]) -> Mapping[int, Mapping[int, bytes]]:
        """Give the roster to everybody in it."""

    def mask(
        self, deliveries: Mapping[int, Mapping[int, bytes]]
    ) -> Iterable[tuple[int, NDArray[np.uint64]]]:
        """Give every recipient its sealed shares; the masked vectors as they come."""


def masked_sum(agreement: Agreement, channel: MaskingChannel) -> Aggregator:
    """Run one sum from the server up to step 3, after which nobody's vector can be told yet.

    Returns:
        The server's side, whose survivors have not been asked for their shares.

    Raises:
        SecureAggregationError: more than a third of the enrolled left.
        TooFewNewError: too few of those who stayed have something new.
    """
    aggregator = Aggregator(agreement)
    replies = channel.advertise(agreement)
    roster = aggregator.enrol(replies, channel.new)
    deliveries = aggregator.deliver(channel.share(roster))
    for party, masked in channel.mask(deliveries):
        aggregator.add(party, masked)
    aggregator.require_survivors()
    return aggregator
