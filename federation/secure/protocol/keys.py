"""The keys of a party of a secure sum, and what is derived from them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocl.federation.privacy.prg import KEY_BYTES, KeyStream
from protocl.federation.secure.protocol.agreement import Agreement, SecureAggregationError

_KEYS_BYTES = 96
VOUCHER_BYTES = 96
COMMITMENT_BYTES = 64


class ComplaintError(SecureAggregationError):
    """What others sent cannot be used, and it is said who they are.

    Attributes:
        senders: their identities.
    """

    def __init__(self, text: str, senders: frozenset[int]) -> None:
        super().__init__(text)
        self.senders = senders


@dataclass(frozen=True)
class PublicKeys:
    """The public keys of a party, which all others are told.

    Attributes:
        sealing: X25519 key under which shares are sealed for it, 32 bytes.
        masking: X25519 key from which its pairwise masks follow, 32 bytes.
        commitment: to the seed of its own mask, 32 bytes.
        voucher: of a long-lived identity for these keys, or nothing
            (:mod:`protocl.federation.secure.protocol.identity`).
    """

    sealing: bytes
    masking: bytes
    commitment: bytes
    voucher: bytes = b""

    @property
    def body(self) -> bytes:
        """The three without the voucher, 96 bytes."""
        return self.sealing + self.masking + self.commitment

    def to_bytes(self) -> bytes:
        """All of it, joined."""
        return self.body + self.voucher

    @staticmethod
    def size(agreement: Agreement) -> int:
        """How many bytes keys are under these terms."""
        return _KEYS_BYTES + (VOUCHER_BYTES if agreement.scheme.name == "pinned" else 0)

    @classmethod
    def from_bytes(cls, data: bytes, agreement: Agreement) -> PublicKeys:
        """Read keys from the bytes that :meth:`to_bytes` gave.

        Raises:
            SecureAggregationError: these are not 96 bytes, or 192 under terms with vouchers.
        """
        if len(data) != cls.size(agreement):
            raise SecureAggregationError(
                f"public keys of {len(data)} bytes: expected {cls.size(agreement)}"
            )
        return cls(data[:32], data[32:64], data[64:96], data[96:])


@dataclass(frozen=True)
class Dealing:
    """The shares of its two secrets that a party deals.

    Attributes:
        sealed: for each of the others it shares with, two shares sealed for it.
        commitments: to both shares of each of them, and of the party itself; the server keeps
            them, so that it can tell who gives wrong shares in the end.
    """

    sealed: dict[int, bytes]
    commitments: dict[int, bytes]


@dataclass(frozen=True)
class Delivery:
    """What others dealt to a party, by sender."""

    sealed: dict[int, bytes]
    commitments: dict[int, bytes]


@dataclass(frozen=True)
class Revealed:
    """The shares that a party gives in the end, by the party whose secret they are shares of.

    Attributes:
        seeds: of the own masks of those whose vectors arrived.
        keys: of the masking keys of those whose vectors did not.
    """

    seeds: dict[int, bytes]
    keys: dict[int, bytes]


def shared_key(
    private: X25519PrivateKey, public: bytes, purpose: bytes, agreement: Agreement
) -> bytes:
    """The key that two parties have in common: X25519, then HKDF with SHA-256."""
    secret = _exchange(private, public)
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=purpose + agreement.context).derive(secret)


def _exchange(private: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise SecureAggregationError(f"a public key that is none: {error}") from error


def pairwise_mask(private: X25519PrivateKey, public: bytes, agreement: Agreement) -> KeyStream:
    """The mask that one of two parties adds and the other subtracts."""
    return KeyStream(shared_key(private, public, b"protocl mask ", agreement))


def adds_mask(party: int, other: int) -> bool:
    """Whether ``party`` is the one of the two that adds their mask."""
    return party > other


def require_usable(keys: PublicKeys) -> None:
    """Refuse keys with which nobody can agree on a secret.

    Raises:
        SecureAggregationError: a key is one of X25519's points of small order.
    """
    probe = X25519PrivateKey.generate()
    for key in (keys.sealing, keys.masking):
        _exchange(probe, key)


def commit_to_shares(agreement: Agreement, dealer: int, holder: int, shares: bytes) -> bytes:
    """Digests of both shares that ``dealer`` gives ``holder``, 32 bytes each.

    Shares are uniform over more than 2^256 values, so their digests say nothing about them.
    """
    half = len(shares) // 2
    return b"".join(
        share_digest(agreement, dealer, holder, kind, share)
        for kind, share in ((b"seed", shares[:half]), (b"key", shares[half:]))
    )


def share_digest(
    agreement: Agreement, dealer: int, holder: int, kind: bytes, share: bytes
) -> bytes:
    """Digest of the share of one secret, ``seed`` or ``key``."""
    route = f" {dealer} {holder} ".encode()
    return hashlib.sha256(agreement.context + kind + route + share).digest()


def join_entries(entries: Mapping[int, bytes]) -> bytes:
    """Values of one length by party, as bytes: each party's number in 8 bytes, then its value."""
    return b"".join(party.to_bytes(8, "big") + value for party, value in entries.items())


def split_entries(data: bytes, length: int) -> dict[int, bytes]:
    """What :func:`join_entries` joined, for values of ``length`` bytes.

    Raises:
        SecureAggregationError: the bytes do not divide so, or name a party twice.
    """
    size = 8 + length
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    entries = {int.from_bytes(piece[:8], "big"): piece[8:] for piece in pieces}
    if len(data) % size or len(entries) != len(pieces):
        raise SecureAggregationError(
            f"{len(data)} bytes: expected entries of {size} bytes, each of another party"
        )
    return entries
