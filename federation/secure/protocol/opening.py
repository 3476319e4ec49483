"""How the server joins the shares that it is given in the end, and who gave or dealt wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from protocl.federation.secure.protocol.agreement import Agreement, SecureAggregationError
from protocl.federation.secure.protocol.keys import (
    COMMITMENT_BYTES,
    PublicKeys,
    Revealed,
    share_digest,
)
from protocl.federation.secure.protocol.shamir import SharingError, join_shares


class FalseDealerError(SecureAggregationError):
    """A party dealt shares of nothing, as it committed to; no sum with it can be opened.

    Attributes:
        dealer: its identity.
    """

    def __init__(self, dealer: int) -> None:
        super().__init__(f"the shares that {dealer} dealt do not give what it committed to")
        self.dealer = dealer


class Opening:
    """The shares revealed so far, each checked against what its dealer committed to.

    Args:
        agreement: the terms.
        roster: keys by party.
        dealt: dealer -> holder -> commitments to the shares of both secrets.

    Attributes:
        revealed: the shares that are right, by who gave them.
    """

    def __init__(
        self,
        agreement: Agreement,
        roster: Mapping[int, PublicKeys],
        dealt: Mapping[int, Mapping[int, bytes]],
    ) -> None:
        self.agreement = agreement
        self.revealed: dict[int, Revealed] = {}
        self._roster = roster
        self._dealt = dealt

    def take(self, holder: int, given: Revealed, due: Revealed) -> bool:
        """Keep the shares of one party, if all that are due are there and were dealt to it.

        Args:
            holder: who gave them.
            given: what it gave.
            due: of whom it must give shares; the values do not matter.
        """
        complete = set(given.seeds) == set(due.seeds) and set(given.keys) == set(due.keys)
        right = complete and all(
            self._is_dealt(dealer, holder, kind, share)
            for kind, shares in ((b"seed", given.seeds), (b"key", given.keys))
            for dealer, share in shares.items()
        )
        if right:
            self.revealed[holder] = given
        return right

    def seed(self, party: int) -> bytes:
        """The seed of a survivor's own mask.

        Raises:
            SecureAggregationError: too few shares came.
            FalseDealerError: enough came, and they give something else.
        """
        commitment = self._roster[party].commitment
        shares = {p: r.seeds[party] for p, r in self.revealed.items() if party in r.seeds}
        return self._join(shares, party, lambda s: self.agreement.commitment(s) == commitment)

    def masking_key(self, party: int) -> X25519PrivateKey:
        """The masking key of a party whose vector did not arrive; raises as :meth:`seed`."""
        public = self._roster[party].masking
        shares = {p: r.keys[party] for p, r in self.revealed.items() if party in r.keys}
        secret = self._join(shares, party, lambda key: _public(key) == public)
        return X25519PrivateKey.from_private_bytes(secret)

    def _join(
        self, shares: Mapping[int, bytes], dealer: int, matches: Callable[[bytes], bool]
    ) -> bytes:
        needed = self.agreement.threshold(len(self._roster))
        if len(shares) < needed:
            raise SecureAggregationError(
                f"{len(shares)} shares of the secret of {dealer}: {needed} are needed; others may "
                "give theirs later"
            )
        try:
            secret = join_shares(shares, needed)
        except SharingError as error:
            raise FalseDealerError(dealer) from error
        if not matches(secret):
            raise FalseDealerError(dealer)
        return secret

    def _is_dealt(self, dealer: int, holder: int, kind: bytes, share: bytes) -> bool:
        both = self._dealt.get(dealer, {}).get(holder, b"")
        half = COMMITMENT_BYTES // 2
        promised = both[:half] if kind == b"seed" else both[half:]
        return share_digest(self.agreement, dealer, holder, kind, share) == promised


def _public(masking_key: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(masking_key).public_key().public_bytes_raw()
