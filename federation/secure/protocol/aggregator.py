"""Sums of vectors of which the server sees nothing but the sum.

The protocol of Bonawitz et al., "Practical secure aggregation for privacy-preserving machine
learning" (CCS 2017), figure 4, on integers modulo 2^64. In four steps, each a message to every
party and its answer:

1. *advertise*: each party sends two X25519 keys; the server passes on all of them.
2. *share*: each party splits its masking key and the seed of its own mask into Shamir shares, one
   for each party, sealed for it, and says with them whether it has something new. It commits to
   each share, which who receives it checks.
3. *mask*: each party sends its vector plus its own mask, plus or minus one mask for each other
   party that shared. The server adds up what arrives; masks of pairs cancel.
4. *unmask*: each party gives its shares of the own masks of those whose vectors arrived, and of
   the masking keys of those whose vectors did not. The server removes these masks from the sum.

Three schemes (:mod:`.schemes`) say who shares with whom. With ``true`` everybody does with
everybody, and up to a third may leave; with ``pinned`` parties also sign the survivors between
steps 3 and 4 (:mod:`.pinned`), and fewer may leave; with ``graph`` (:mod:`.graph`) each shares with
some. Two more than may collude (:meth:`Agreement.colluding`) must have something new and stay.
Parties without anything new add zeros; the others count for themselves who has, before they give a
vector and before they give a share, but with ``graph``, where they see some parties only.

A sum whose parties were asked for their shares is never begun again with other parties, for the
difference of two sums would tell of those that are in one of them. It is finished, by asking the
same parties for the same shares, or given up with all that is in it
(:mod:`protocl.federation.secure.unfinished_sum`).

Who stops a sum is named. Keys that are none, shares that were not sealed by who sent them or are
not what it committed to: whoever receives them complains of the sender, and takes no further part
in this sum. Shares that nobody dealt are recognised by the commitments, and done without. Shares
of nothing, dealt as committed to, cannot be noticed before the end: they cost one sum, and its
dealer is named (:class:`.opening.FalseDealerError`).

Masks are ChaCha20 streams under 256-bit keys (Flower's SecAgg+ has 32 bits of entropy in a mask).
Overflow cannot happen unnoticed: see :attr:`Agreement.largest`.

Threat model. The server and fewer parties than the threshold may pool all they see, and learn of
the others' vectors only their sum, provided that the server follows the protocol and channels are
authenticated. With ``pinned`` the server may do what it likes, with fewer than a third of the
roster. A party can send wrong statistics (nobody sees them, so robust merging does not apply). The
class list, who takes part and when, who has something new, and the sum itself are not hidden; noise
on it is the business of :mod:`protocl.federation.privacy.release`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from protocl.federation.privacy.prg import KeyStream
from protocl.federation.secure.protocol.agreement import (
    SMALLEST_GROUP,
    Agreement,
    SecureAggregationError,
)
from protocl.federation.secure.protocol.identity import MEMBER_BYTES, Roster
from protocl.federation.secure.protocol.keys import (
    Dealing,
    Delivery,
    PublicKeys,
    Revealed,
    adds_mask,
    pairwise_mask,
)
from protocl.federation.secure.protocol.opening import Opening
from protocl.federation.secure.protocol.pinned import signers, vouched

logger = logging.getLogger(__name__)


class Aggregator:
    """The server's side of one sum.

    It holds public keys, sealed shares that it passes on, and one vector: the sum of the masked
    vectors so far. No method takes or returns a party's statistics in the clear.

    Args:
        agreement: the terms.
        pinned: the roster of the scheme ``pinned``.

    Attributes:
        roster: keys of all who enrolled.
        signatures: of survivors under the list of them, where they sign it.
        refused: party -> why what it sent is not used.
        strangers: parties for whom no member of a pinned roster signed.
        complaints: party -> of whom it complains.
    """

    def __init__(self, agreement: Agreement, pinned: Roster | None = None) -> None:
        self.agreement = agreement
        self.roster: dict[int, PublicKeys] = {}
        self.signatures: dict[int, bytes] = {}
        self.refused: dict[int, str] = {}
        self.strangers: set[int] = set()
        self.complaints: dict[int, frozenset[int]] = {}
        self._pinned = pinned
        self._neighbours: dict[int, frozenset[int]] = {}
        self._new: set[int] = set()
        self._dealt: dict[int, dict[int, bytes]] = {}
        self._survivors: set[int] = set()
        self._opening = Opening(agreement, self.roster, self._dealt)
        self._total = np.zeros(agreement.size, dtype=np.uint64)

    @property
    def survivors(self) -> list[int]:
        """Parties whose masked vectors are in the sum."""
        return sorted(self._survivors)

    @property
    def waiting_for(self) -> list[int]:
        """Survivors that have not given their shares yet."""
        return sorted(self._survivors - set(self._opening.revealed))

    def enrol(
        self, replies: Mapping[int, PublicKeys], new: Collection[int]
    ) -> dict[int, Mapping[int, PublicKeys]]:
        """After step 1: for each who enrolled the keys that it gets, its own among them.

        Args:
            replies: keys by identity. Keys that two parties gave are those of neither.
            new: identities of those who say that they have something new.

        Raises:
            SecureAggregationError: they are too few.
            TooFewNewError: those who have something new are.
        """
        self.strangers = {party for party, keys in replies.items() if self._is_strange(party, keys)}
        for party in sorted(self.strangers):
            self.refuse(party, "its keys are signed by no member of the pinned roster")
        known = {party: keys for party, keys in replies.items() if party not in self.strangers}
        given = Counter(key for keys in known.values() for key in _names(keys))
        for party, keys in known.items():
            if any(given[key] > 1 for key in _names(keys)):
                self.refuse(party, "it enrolled with a key that occurs twice")
            else:
                self.roster[party] = keys
        if len(self.roster) < SMALLEST_GROUP:
            raise SecureAggregationError(
                f"{len(self.roster)} parties enrolled: expected {SMALLEST_GROUP} or more"
            )
        self._new = set(new)
        self._require_enough(len(self.roster), "enrolled")
        self._require_new(self.roster, "enrolled")
        self._neighbours = self.agreement.scheme.neighbours(self.roster)
        return {party: self._seen_by(party) for party in self.roster}

    def deliver(self, replies: Mapping[int, Dealing]) -> dict[int, Delivery]:
        """After step 2: for each party that shared, what the others dealt to it.

        Args:
            replies: by sender.

        Raises:
            SecureAggregationError: too few parties shared with each that they should.
            TooFewNewError: those of them who have something new are too few.
        """
        sealed: dict[int, dict[int, bytes]] = {}
        for sender in self._known(replies, among=self.roster):
            dealing, others = replies[sender], self._neighbours[sender]
            if set(dealing.sealed) == others and set(dealing.commitments) == {*others, sender}:
                sealed[sender] = dealing.sealed
                self._dealt[sender] = dealing.commitments
            else:
                self.refuse(sender, "it did not share with each of the others")
        self._require_enough(len(self._dealt), "shared")
        self._require_new(self._dealt, "shared")
        return {party: self._delivery(party, sealed) for party in sorted(self._dealt)}

    def add(self, party: int, masked: NDArray[np.uint64]) -> None:
        """During step 3: add a masked vector; it is not kept.

        Raises:
            SecureAggregationError: the party did not share or has sent a vector before, or this is
                no vector of the agreed size.
        """
        if party not in self._dealt or party in self._survivors or self._opening.revealed:
            raise SecureAggregationError(f"a vector from {party} is not expected; it was not added")
        if masked.shape != self._total.shape or masked.dtype != np.uint64:
            raise SecureAggregationError(
                f"a vector of shape {masked.shape} and type {masked.dtype} from {party}: "
                f"expected {self._total.shape} uint64; it was not added"
            )
        self._total += masked
        self._survivors.add(party)

    def complain(self, party: int, senders: Collection[int]) -> None:
        """Note that ``party`` complains of what some others sent it; it takes no further part."""
        self.complaints[party] = frozenset(senders) & self._neighbours[party]
        logger.warning("%d complains of %s", party, sorted(self.complaints[party]))

    def require_survivors(self) -> list[int]:
        """After step 3: the survivors, whom all of them are told.

        Raises:
            SecureAggregationError: they are too few to remove the masks.
            TooFewNewError: those of them who have something new are too few.
        """
        self._require_enough(len(self._survivors), "sent a vector")
        self._require_new(self._survivors, "sent a vector")
        return self.survivors

    def collect(self, signatures: Mapping[int, bytes]) -> None:
        """Between steps 3 and 4: keep the signatures under the list of survivors.

        Where it fails, it can be called again with what others sign later.

        Raises:
            SecureAggregationError: too few are right.
        """
        right = signers(self.agreement, self.roster, self._survivors, signatures)
        for party in set(signatures) - right:
            self.refuse(party, "its signature under the survivors is wrong")
        self.signatures |= {party: signatures[party] for party in sorted(right)}
        self._require_enough(len(self.signatures), "signed the list of survivors")

    def unmask(self, replies: Mapping[int, Revealed]) -> NDArray[np.int64]:
        """After step 4: the sum of the survivors' vectors, ``(size,)``.

        Where it fails, it can be called again with what others answer later.

        Raises:
            SecureAggregationError: too few parties answered so far, or gave right shares.
            FalseDealerError: the shares that a party dealt give nothing; this sum has no end.
        """
        for party in self._known(replies, among=self._survivors):
            if not self._opening.take(party, replies[party], self._due(party)):
                self.refuse(party, "it gave other shares than were dealt to it")
        self._require_enough(len(self._opening.revealed), "gave their shares")
        total = self._total.copy()
        for party in self.survivors:
            KeyStream(self._opening.seed(party)).add_to(total, negative=True)
        for party in sorted(set(self._dealt) - self._survivors):
            self._remove_pairwise(total, party, self._opening.masking_key(party))
        return total.view(np.int64)

    def refuse(self, party: int, why: str) -> None:
        """Note that what a party sent is not used."""
        self.refused[party] = why
        logger.warning("%d is left out: %s", party, why)

    # -- parts ------------------------------------------------------------------------------

    def _is_strange(self, party: int, keys: PublicKeys) -> bool:
        """Whether a roster is pinned, of which no member signed these keys."""
        return self._pinned is not None and not vouched(self.agreement, self._pinned, party, keys)

    def _seen_by(self, party: int) -> Mapping[int, PublicKeys]:
        if len(self._neighbours[party]) == len(self.roster) - 1:
            return self.roster
        return {p: self.roster[p] for p in sorted({*self._neighbours[party], party})}

    def _delivery(self, party: int, sealed: Mapping[int, Mapping[int, bytes]]) -> Delivery:
        senders = sorted(self._neighbours[party] & set(sealed))
        return Delivery(
            {sender: sealed[sender][party] for sender in senders},
            {sender: self._dealt[sender][party] for sender in senders},
        )

    def _due(self, party: int) -> Revealed:
        """Of whom a survivor must give shares."""
        dealers = {*self._neighbours[party], party} & set(self._dealt)
        arrived = dealers & self._survivors
        return Revealed(dict.fromkeys(arrived, b""), dict.fromkeys(dealers - arrived, b""))

    def _remove_pairwise(
        self, total: NDArray[np.uint64], gone: int, private: X25519PrivateKey
    ) -> None:
        """Take out of ``total`` what the survivors added for a party that is gone."""
        for survivor in sorted(self._survivors & self._neighbours[gone]):
            mask = pairwise_mask(private, self.roster[survivor].masking, self.agreement)
            mask.add_to(total, negative=adds_mask(survivor, gone))

    def _known(self, replies: Iterable[int], among: Iterable[int]) -> set[int]:
        strangers = set(replies) - set(among)
        if strangers:
            raise SecureAggregationError(f"answers from {sorted(strangers)} were not expected")
        return set(replies)

    def _require_enough(self, number: int, did: str) -> None:
        self.agreement.require_enough(number, len(self.roster), did)

    def _require_new(self, parties: Iterable[int], did: str) -> None:
        self.agreement.require_new(len(self._new.intersection(parties)), len(self.roster), did)


def _names(keys: PublicKeys) -> list[bytes]:
    """Keys that may occur once only, among all parties."""
    member = keys.voucher[:MEMBER_BYTES]
    return [keys.sealing, keys.masking, *([member] if member else [])]
