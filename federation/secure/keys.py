"""What the parties of a secure sum agree on first, and the keys that they derive."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocl.errors import ProtoclError
from protocl.federation.privacy.prg import KEY_BYTES, KeyStream
from protocl.federation.privacy.vector import StatisticsLayout

SESSION_BYTES = 16
SMALLEST_GROUP = 3
"""With two parties, each would learn the other's statistics from the sum."""


class SecureAggregationError(ProtoclError):
    """A secure sum that cannot go on, or that a party must not go on with."""


class TooFewNewError(SecureAggregationError):
    """A sum that would tell too much of those few who have something new in it; it must wait."""


@dataclass(frozen=True)
class Agreement:
    """The terms of one secure sum. Every party has the same ones, or its masks fit nobody's.

    Attributes:
        session: bytes that no other sum has.
        layout_digest: of the vectors (:attr:`StatisticsLayout.digest`).
        size: integers in a vector.
        invited: how many parties at most; with them the sum must not pass 64 bits.
        colluders: how many parties may pool what they know with each other and with the server;
            0 for a third of the enrolled less one (:meth:`colluding`).
    """

    session: bytes
    layout_digest: str
    size: int
    invited: int
    colluders: int = 0

    def __post_init__(self) -> None:
        if len(self.session) != SESSION_BYTES:
            raise ValueError(f"session of {len(self.session)} bytes: expected {SESSION_BYTES}")
        if self.size < 1:
            raise ValueError(f"size={self.size}: expected a positive number of integers")
        if self.invited < SMALLEST_GROUP:
            raise ValueError(f"invited={self.invited}: expected {SMALLEST_GROUP} parties or more")
        if self.colluders < 0:
            raise ValueError(f"colluders={self.colluders}: expected 1 or more, or 0 for a third")

    @classmethod
    def new(cls, layout: StatisticsLayout, invited: int, colluders: int = 0) -> Agreement:
        """Terms of a fresh session for vectors of ``layout``."""
        return cls(os.urandom(SESSION_BYTES), layout.digest, layout.size, invited, colluders)

    @property
    def largest(self) -> int:
        """Largest magnitude that an entry of one party's vector may have.

        Sums are computed modulo 2^64 and read as signed, which is right while
        ``invited * largest < 2^63``. The server cannot check masked vectors, so each party must.
        """
        return (2**63 - 1) // self.invited

    @property
    def context(self) -> bytes:
        """Digest of the terms, which every key is bound to."""
        terms = (
            f"{self.session.hex()} {self.layout_digest} {self.size} {self.invited} {self.colluders}"
        )
        return hashlib.sha256(terms.encode()).digest()

    @staticmethod
    def threshold(enrolled: int) -> int:
        """How many of the enrolled must stay to the end: all but a third, so always a majority."""
        return enrolled - enrolled // 3

    def colluding(self, enrolled: int) -> int:
        """How many of the enrolled may pool what they know: as set, else (n - 1) / 3, at least one.

        At least one, for whoever takes part can subtract itself from the sum.
        """
        return self.colluders or max(1, (enrolled - 1) // 3)

    def require_new(self, new: int, enrolled: int, did: str) -> None:
        """Refuse a sum in which two honest parties cannot be told to have something new.

        Those without anything new add zeros. Colluders may say that they have something new, and
        know what they sent; hence two more than there are of them.

        Args:
            new: how many of those who are in the sum say that they have something new.
            enrolled: how many parties enrolled.
            did: what the ``new`` have done so far, for the message.

        Raises:
            TooFewNewError: they are too few.
            SecureAggregationError: so many colluders could join all secrets of the others.
        """
        colluders = self.colluding(enrolled)
        if colluders >= self.threshold(enrolled):
            raise SecureAggregationError(
                f"colluders={colluders} of {enrolled} parties have the shares of all secrets: "
                f"expected fewer than {self.threshold(enrolled)}; more parties must take part"
            )
        if new < colluders + 2:
            raise TooFewNewError(
                f"waiting: {new} of those who {did} have something new, {colluders + 2} are "
                f"needed, so that {colluders} colluding cannot tell the others apart"
            )

    def commitment(self, seed: bytes) -> bytes:
        """Digest by which a reconstructed seed is recognised; random seeds stay secret."""
        return hashlib.sha256(self.context + seed).digest()


@dataclass(frozen=True)
class PublicKeys:
    """The public keys of a party, which all others are told.

    Attributes:
        sealing: X25519 key under which shares are sealed for it, 32 bytes.
        masking: X25519 key from which its pairwise masks follow, 32 bytes.
        commitment: to the seed of its own mask, 32 bytes.
    """

    BYTES: ClassVar[int] = 96

    sealing: bytes
    masking: bytes
    commitment: bytes

    def to_bytes(self) -> bytes:
        """The three joined, 96 bytes."""
        return self.sealing + self.masking + self.commitment

    @classmethod
    def from_bytes(cls, data: bytes) -> PublicKeys:
        """Read keys from the bytes that :meth:`to_bytes` gave.

        Raises:
            SecureAggregationError: these are not 96 bytes.
        """
        if len(data) != cls.BYTES:
            raise SecureAggregationError(f"public keys of {len(data)} bytes: expected {cls.BYTES}")
        return cls(data[:32], data[32:64], data[64:])


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
    for key in (keys.sealing, keys.masking):
        _exchange(X25519PrivateKey.generate(), key)


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
