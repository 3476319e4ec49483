"""What the parties of a secure sum agree on first."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property

from protocl.errors import ProtoclError
from protocl.federation.privacy.vector import StatisticsLayout
from protocl.federation.secure.protocol.schemes import COMPLETE, Scheme

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
            0 for what the scheme expects (:meth:`colluding`).
        scheme: who shares with whom.
    """

    session: bytes
    layout_digest: str
    size: int
    invited: int
    colluders: int = 0
    scheme: Scheme = COMPLETE

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
    def new(
        cls,
        layout: StatisticsLayout,
        invited: int,
        colluders: int = 0,
        scheme: Scheme = COMPLETE,
    ) -> Agreement:
        """Terms of a fresh session for vectors of ``layout``."""
        session = os.urandom(SESSION_BYTES)
        return cls(session, layout.digest, layout.size, invited, colluders, scheme)

    @property
    def largest(self) -> int:
        """Largest magnitude that an entry of one party's vector may have.

        Sums are computed modulo 2^64 and read as signed, which is right while
        ``invited * largest < 2^63``. The server cannot check masked vectors, so each party must.
        """
        return (2**63 - 1) // self.invited

    @cached_property
    def context(self) -> bytes:
        """Digest of the terms, which every key is bound to."""
        terms = (
            f"{self.session.hex()} {self.layout_digest} {self.size} {self.invited} "
            f"{self.colluders} {self.scheme.terms}"
        )
        return hashlib.sha256(terms.encode()).digest()

    def threshold(self, enrolled: int) -> int:
        """How many shares join a secret (:meth:`.Scheme.threshold`)."""
        return self.scheme.threshold(enrolled)

    def colluding(self, enrolled: int) -> int:
        """How many of the enrolled may pool what they know: as set, else as the scheme expects.

        At least one, for whoever takes part can subtract itself from the sum.
        """
        return self.colluders or self.scheme.colluders(enrolled)

    def require_enough(self, number: int, enrolled: int, did: str) -> None:
        """Refuse a sum of too few parties.

        Raises:
            SecureAggregationError: more left than may.
        """
        needed = self.scheme.staying(enrolled)
        if number < needed:
            raise SecureAggregationError(
                f"{number} of {enrolled} parties {did}: {needed} are needed to go on"
                f"{self.scheme.remark}"
            )

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
        colluders, most = self.colluding(enrolled), self.scheme.most_colluders(enrolled)
        if colluders > most:
            raise SecureAggregationError(
                f"colluders={colluders} of {enrolled} parties could learn the secrets of all: "
                f"expected {most} at most; more parties must take part"
            )
        if new < colluders + 2:
            raise TooFewNewError(
                f"waiting: {new} of those who {did} have something new, {colluders + 2} are "
                f"needed, so that {colluders} colluding cannot tell the others apart"
            )

    def commitment(self, seed: bytes) -> bytes:
        """Digest by which a reconstructed seed is recognised; random seeds stay secret."""
        return hashlib.sha256(self.context + seed).digest()
