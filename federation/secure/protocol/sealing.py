"""How a party seals shares for another one, and checks what others sealed for it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from protocl.federation.privacy.prg import KEY_BYTES
from protocl.federation.secure.protocol.agreement import Agreement, SecureAggregationError
from protocl.federation.secure.protocol.keys import (
    ComplaintError,
    Delivery,
    PublicKeys,
    commit_to_shares,
    join_entries,
    shared_key,
    split_entries,
)
from protocl.federation.secure.protocol.shamir import SHARE_BYTES

NONCE_BYTES = 12
SEALED_BYTES = NONCE_BYTES + 2 * SHARE_BYTES + 1 + 16
"""Two shares and whether there is something new, sealed for one party: nonce, ciphertext, tag."""


class Sealer:
    """The keys that a party has in common with others for sealing, by party.

    Args:
        identity: of the party.
        agreement: the terms, which all keys are bound to.
        keys: those agreed on before.
    """

    def __init__(self, identity: int, agreement: Agreement, keys: Mapping[int, bytes]) -> None:
        self.identity = identity
        self.agreement = agreement
        self._keys = dict(keys)

    def to_bytes(self) -> bytes:
        """All keys, joined."""
        return join_entries(self._keys)

    @classmethod
    def from_bytes(cls, identity: int, agreement: Agreement, data: bytes) -> Sealer:
        """The sealer that :meth:`to_bytes` was taken of."""
        return cls(identity, agreement, split_entries(data, KEY_BYTES))

    def agree(self, private: X25519PrivateKey, roster: Mapping[int, PublicKeys]) -> None:
        """Agree on a key with each of ``roster`` but the party itself.

        Raises:
            ComplaintError: keys of some are points with which nobody can.
        """
        for other, keys in roster.items():
            try:
                if other != self.identity:
                    self._keys[other] = shared_key(
                        private, keys.sealing, b"protocl seal ", self.agreement
                    )
            except SecureAggregationError:
                continue
        unusable = frozenset(roster) - set(self._keys) - {self.identity}
        if unusable:
            raise ComplaintError(f"the keys of {sorted(unusable)} are none", unusable)

    def seal(self, other: int, shares: bytes, *, new: bool) -> bytes:
        """Both shares for ``other``, and whether there is something new, for its eyes only."""
        nonce = os.urandom(NONCE_BYTES)
        route = f"{self.identity} to {other}".encode()
        cipher = ChaCha20Poly1305(self._keys[other])
        return nonce + cipher.encrypt(nonce, shares + bytes([new]), route)

    def open_all(self, received: Delivery) -> dict[int, tuple[bytes, bool]]:
        """Both shares of each who dealt, and whether it has something new.

        Raises:
            SecureAggregationError: a sender is none of the others.
            ComplaintError: what some sent was not sealed by them for this party, or is not what
                they committed to.
        """
        if strangers := set(received.sealed) - set(self._keys):
            raise SecureAggregationError(
                f"shares from {sorted(strangers)}, who are none of the other parties"
            )
        opened = {
            other: self._open(other, sealed, received.commitments.get(other, b""))
            for other, sealed in received.sealed.items()
        }
        if wrong := frozenset(other for other, content in opened.items() if content is None):
            raise ComplaintError(
                f"what came as shares of {sorted(wrong)} was not sealed by them for "
                f"{self.identity}, or is not what they committed to", wrong,
            )  # fmt: skip
        return {o: (c[:-1], c[-1:] == b"\x01") for o, c in opened.items() if c is not None}

    def _open(self, other: int, sealed: bytes, commitment: bytes) -> bytes | None:
        """What ``other`` sealed; None if it is garbage."""
        route = f"{other} to {self.identity}".encode()
        cipher = ChaCha20Poly1305(self._keys[other])
        if len(sealed) != SEALED_BYTES:
            return None
        try:
            content = cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], route)
        except InvalidTag:
            return None
        promised = commit_to_shares(self.agreement, other, self.identity, content[:-1])
        return content if promised == commitment else None
