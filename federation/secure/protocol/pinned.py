"""A secure sum with a server that may lie: vouchers for keys, signatures under the survivors.

What :mod:`.participant` leaves out of Bonawitz et al. (CCS 2017, figure 4): every advertised key
is signed by a member of a roster that each party pins, so that the server can neither invent
parties nor pass on keys of its own; and in a round of consistency, between masking and unmasking,
each party signs the list of survivors that it was told, and reveals nothing before it has seen the
signatures of ``t`` others under the same list.

Why no two lists find ``t`` signatures: an honest party signs once, what it signs names the keys of
all who enrolled as that party was told, and of ``n`` members with ``c`` colluding, two lists would
need ``2 t <= n + c`` signatures; ``t = floor(2 n / 3) + 1`` is more than that while ``c < n / 3``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

from protocl.federation.secure.protocol.agreement import Agreement, SecureAggregationError
from protocl.federation.secure.protocol.identity import MEMBER_BYTES, Roster, Signer, is_signed
from protocl.federation.secure.protocol.keys import (
    ComplaintError,
    PublicKeys,
    Revealed,
    join_entries,
)
from protocl.federation.secure.protocol.participant import Participant


class PinnedParticipant(Participant):
    """A party that trusts the members of a roster, and not the server.

    Args:
        identity, agreement: as of every party.
        signer: signs, and knows the roster.
        private: as of every party.

    Raises:
        SecureAggregationError: the agreement is of another roster.
    """

    _after_mask = "agree"

    def __init__(
        self,
        identity: int,
        agreement: Agreement,
        signer: Signer,
        private: Mapping[str, bytes] | None = None,
    ) -> None:
        super().__init__(identity, agreement, private)
        self._signer = signer
        if agreement.scheme != signer.roster.scheme:
            raise SecureAggregationError(
                f"the server sums under '{agreement.scheme.terms}': expected "
                f"'{signer.roster.scheme.terms}', the roster that this party pins"
            )

    def advertise(self) -> PublicKeys:
        """Step 1: the keys, and this member's signature under them."""
        keys = super().advertise()
        signature = self._signer.sign(_voucher_text(self.agreement, self.identity, keys))
        return PublicKeys(
            keys.sealing, keys.masking, keys.commitment, self._signer.member + signature
        )

    def agree(self, survivors: Collection[int]) -> bytes:
        """Step 3 and a half: this member's signature under the survivors, for one list only.

        Raises:
            SecureAggregationError: as :meth:`Participant.unmask`.
            TooFewNewError: as :meth:`Participant.unmask`.
        """
        arrived = self._checked_survivors(survivors)
        if arrived != self._survivors:
            self._enter("agree", then="unmask")
            self._survivors = arrived
        return self._signer.sign(survivors_text(self.agreement, self._roster, arrived))

    def unmask(
        self, survivors: Collection[int], signatures: Mapping[int, bytes] | None = None
    ) -> Revealed:
        """Step 4, once ``t`` members have signed the very list that this one has signed.

        Raises:
            SecureAggregationError: it signed another list, or fewer than ``t`` signatures of
                survivors are under this one.
        """
        arrived = set(survivors)
        if arrived != self._survivors or not arrived:
            raise SecureAggregationError(
                f"{sorted(arrived)} are said to have sent vectors, {sorted(self._survivors)} is "
                "what this party signed"
            )
        signed = signers(self.agreement, self._roster, arrived, signatures or {})
        needed = self.agreement.threshold(self.enrolled)
        if len(signed) < needed:
            raise SecureAggregationError(
                f"{len(signed)} parties signed the list of survivors: {needed} are needed"
                f"{self.agreement.scheme.remark}; the server may tell others of other survivors"
            )
        return self._reveal(arrived)

    def _check_roster(self, roster: Mapping[int, PublicKeys]) -> None:
        super()._check_roster(roster)
        require_vouchers(self.agreement, self._signer.roster, roster)


def require_vouchers(agreement: Agreement, roster: Roster, keys: Mapping[int, PublicKeys]) -> None:
    """Refuse keys that no member of the roster vouches for, or of which one does twice.

    Raises:
        ComplaintError: there are such keys.
    """
    wrong = frozenset(i for i, k in keys.items() if not vouched(agreement, roster, i, k))
    if wrong:
        raise ComplaintError(
            f"the keys of {sorted(wrong)} are signed by no member of the pinned roster", wrong
        )
    members = [k.voucher[:MEMBER_BYTES] for k in keys.values()]
    twice = frozenset(i for i, k in keys.items() if members.count(k.voucher[:MEMBER_BYTES]) > 1)
    if twice:
        raise ComplaintError(f"{sorted(twice)} are the same member of the pinned roster", twice)


def vouched(agreement: Agreement, roster: Roster, identity: int, keys: PublicKeys) -> bool:
    """Whether a member of the roster signed the keys of this party in this sum."""
    member, signature = keys.voucher[:MEMBER_BYTES], keys.voucher[MEMBER_BYTES:]
    text = _voucher_text(agreement, identity, keys)
    return member in roster.members.values() and is_signed(member, signature, text)


def signers(
    agreement: Agreement,
    keys: Mapping[int, PublicKeys],
    survivors: Collection[int],
    signatures: Mapping[int, bytes],
) -> set[int]:
    """Which survivors signed the list of survivors among those who enrolled with ``keys``."""
    text = survivors_text(agreement, keys, survivors)
    return {
        party
        for party, signature in signatures.items()
        if party in survivors and is_signed(keys[party].voucher[:MEMBER_BYTES], signature, text)
    }


def survivors_text(
    agreement: Agreement, keys: Mapping[int, PublicKeys], survivors: Collection[int]
) -> bytes:
    """What is signed in the round of consistency; with the keys of all who enrolled in it."""
    enrolled = join_entries({i: keys[i].to_bytes() for i in sorted(keys)})
    listed = join_entries(dict.fromkeys(sorted(survivors), b""))
    return b"protocl survivors " + agreement.context + hashlib.sha256(enrolled).digest() + listed


def _voucher_text(agreement: Agreement, identity: int, keys: PublicKeys) -> bytes:
    """The terms have the digest of the roster in them, which is so pinned with every signature."""
    return b"protocl keys " + agreement.context + identity.to_bytes(8, "big") + keys.body
