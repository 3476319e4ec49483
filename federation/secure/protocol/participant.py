"""The client's side of a secure sum (:mod:`protocl.federation.secure.protocol.aggregator`)."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any, Self

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from protocl.federation.privacy.prg import KEY_BYTES, KeyStream
from protocl.federation.secure.protocol.agreement import (
    SMALLEST_GROUP,
    Agreement,
    SecureAggregationError,
)
from protocl.federation.secure.protocol.keys import (
    Dealing,
    Delivery,
    PublicKeys,
    Revealed,
    adds_mask,
    commit_to_shares,
    join_entries,
    pairwise_mask,
    split_entries,
)
from protocl.federation.secure.protocol.sealing import Sealer
from protocl.federation.secure.protocol.shamir import SHARE_BYTES, split_secret


class Participant:
    """A party of one sum. Its methods are called in order, each once.

    A secret's shares must never be given away for both of a party's secrets, or the server could
    strip that party's vector of all masks; hence nothing here can be called twice, but the last
    step with the very same survivors, since an answer may be lost.

    Args:
        identity: of the party, a whole number from 1.
        agreement: the terms, checked against the party's own layout.
        private: X25519 keys for sealing and masking, by name; new ones by default.
    """

    _after_mask = "unmask"

    def __init__(
        self, identity: int, agreement: Agreement, private: Mapping[str, bytes] | None = None
    ) -> None:
        if identity < 1:
            raise ValueError(f"identity={identity}: expected a whole number from 1")
        self.identity = identity
        self.agreement = agreement
        self._step = "advertise"
        self._sealing, self._masking = (
            X25519PrivateKey.from_private_bytes(private[name])
            if private
            else X25519PrivateKey.generate()
            for name in ("sealing", "masking")
        )
        self._seed = private["seed"] if private else os.urandom(KEY_BYTES)
        self._roster: Mapping[int, PublicKeys] = {}
        self.enrolled = 0
        self._sealer = Sealer(identity, agreement, {})
        self._shares: dict[int, tuple[bytes, bytes]] = {}
        self._new: set[int] = set()
        self._survivors: set[int] = set()

    def state(self) -> dict[str, bytes | str]:
        """The whole state of this party, secrets included, kept on the client between two steps."""
        return {
            "step": self._step,
            "sealing": self._sealing.private_bytes_raw(),
            "masking": self._masking.private_bytes_raw(),
            "seed": self._seed,
            "enrolled": self.enrolled.to_bytes(8, "big"),
            "roster": join_entries({i: k.to_bytes() for i, k in self._roster.items()}),
            "sealers": self._sealer.to_bytes(),
            "shares": join_entries({i: a + b for i, (a, b) in self._shares.items()}),
            "new": join_entries(dict.fromkeys(self._new, b"")),
            "survivors": join_entries(dict.fromkeys(self._survivors, b"")),
        }

    @classmethod
    def restore(
        cls, identity: int, agreement: Agreement, state: Mapping[str, bytes | str], **more: Any
    ) -> Self:
        """The party that :meth:`state` was taken of, in another process perhaps."""
        secret = {name: value for name, value in state.items() if isinstance(value, bytes)}
        party = cls(identity, agreement, **more, private=secret)
        party._step = str(state["step"])
        party.enrolled = int.from_bytes(secret["enrolled"], "big")
        roster = split_entries(secret["roster"], PublicKeys.size(agreement))
        party._roster = {i: PublicKeys.from_bytes(keys, agreement) for i, keys in roster.items()}
        party._sealer = Sealer.from_bytes(identity, agreement, secret["sealers"])
        shares = split_entries(secret["shares"], 2 * SHARE_BYTES)
        party._shares = {i: (s[:SHARE_BYTES], s[SHARE_BYTES:]) for i, s in shares.items()}
        party._new = set(split_entries(secret["new"], 0))
        party._survivors = set(split_entries(secret["survivors"], 0))
        return party

    def advertise(self) -> PublicKeys:
        """Step 1: the keys that all others get."""
        self._enter("advertise", then="share")
        return PublicKeys(
            self._sealing.public_key().public_bytes_raw(),
            self._masking.public_key().public_bytes_raw(),
            self.agreement.commitment(self._seed),
        )

    def share(
        self, roster: Mapping[int, PublicKeys], *, new: bool, enrolled: int | None = None
    ) -> Dealing:
        """Step 2: shares of the two secrets, sealed for each of the others.

        Args:
            roster: keys of all that this party shares with, by identity, and its own.
            new: whether the vector will be of something new; a vector of zeros hides nobody. It is
                sealed with the shares, for the others must not have to believe the server.
            enrolled: how many enrolled, where those are not all of them.

        Raises:
            SecureAggregationError: there are too few or too many parties, this one is not among
                them, or two have the same keys.
            ComplaintError: keys of some are unusable.
        """
        self._enter("share", then="mask")
        self.enrolled = len(roster) if enrolled is None else enrolled
        self._check_roster(roster)
        self._roster = dict(roster)
        self._new = {self.identity} if new else set()
        self._sealer.agree(self._sealing, roster)
        threshold = self.agreement.threshold(self.enrolled)
        seeds = split_secret(self._seed, list(roster), threshold)
        keys = split_secret(self._masking.private_bytes_raw(), list(roster), threshold)
        self._shares[self.identity] = (seeds[self.identity], keys[self.identity])
        pairs = {i: seeds[i] + keys[i] for i in roster}
        return Dealing(
            {i: self._sealer.seal(i, p, new=new) for i, p in pairs.items() if i != self.identity},
            {i: commit_to_shares(self.agreement, self.identity, i, p) for i, p in pairs.items()},
        )

    def mask(self, vector: NDArray[np.int64], received: Delivery) -> NDArray[np.uint64]:
        """Step 3: the vector under its own mask and one for each party that shared.

        Args:
            vector: ``(size,)`` int64.
            received: what the others dealt to this party.

        Returns:
            ``(size,)``, uniform over all 64-bit words to anybody who lacks a mask.

        Raises:
            SecureAggregationError: too few parties shared.
            ComplaintError: what some of them dealt was not sealed by them, or is not what they
                committed to.
            TooFewNewError: too few of those who shared have something new.
            OverflowError: an entry is so large that the sum could pass 64 bits.
        """
        self._check_vector(vector)
        self._enter("mask", then=self._after_mask)
        for other, (shares, new) in self._sealer.open_all(received).items():
            self._shares[other] = shares[:SHARE_BYTES], shares[SHARE_BYTES:]
            self._new |= {other} if new else set()
        self._require_enough(self._shares, "shared")
        masked = vector.astype(np.uint64)
        KeyStream(self._seed).add_to(masked)
        for other in received.sealed:
            mask = pairwise_mask(self._masking, self._roster[other].masking, self.agreement)
            mask.add_to(masked, negative=not adds_mask(self.identity, other))
        return masked

    def unmask(
        self, survivors: Collection[int], signatures: Mapping[int, bytes] | None = None
    ) -> Revealed:
        """Step 4: shares of what it takes to remove the masks from the sum.

        Args:
            survivors: parties whose masked vectors arrived.
            signatures: under this list, where parties sign it
                (:mod:`protocl.federation.secure.protocol.pinned`).

        Raises:
            SecureAggregationError: they are too few, not those who shared, or others than before.
            TooFewNewError: too few of them have something new.
        """
        arrived = self._checked_survivors(survivors)
        if arrived != self._survivors:
            self._enter("unmask", then="nothing")
            self._survivors = arrived
        return self._reveal(arrived)

    # -- parts ------------------------------------------------------------------------------

    def _checked_survivors(self, survivors: Collection[int]) -> set[int]:
        arrived = set(survivors)
        if not self.agreement.scheme.counts:
            arrived &= set(self._roster)  # those that it shared with are its business
        if self.identity not in arrived or not arrived <= set(self._shares):
            raise SecureAggregationError(
                f"{sorted(arrived)} are said to have sent vectors: expected party {self.identity} "
                f"and others of {sorted(self._shares)}"
            )
        self._require_enough(arrived, "sent a vector")
        return arrived

    def _reveal(self, arrived: Collection[int]) -> Revealed:
        """Of each party, shares of one of its two secrets."""
        return Revealed(
            {p: seed for p, (seed, _) in self._shares.items() if p in arrived},
            {p: key for p, (_, key) in self._shares.items() if p not in arrived},
        )

    def _enter(self, step: str, then: str) -> None:
        if self._step != step:
            raise SecureAggregationError(
                f"party {self.identity} was asked to {step}: expected {self._step} next; "
                "a participant serves one sum, each step once"
            )
        self._step = then

    def _check_roster(self, roster: Mapping[int, PublicKeys]) -> None:
        own, enrolled = roster.get(self.identity), self.enrolled
        if own is None or own.masking != self._masking.public_key().public_bytes_raw():
            raise SecureAggregationError(
                f"party {self.identity} is not in the roster as it enrolled"
            )
        if not SMALLEST_GROUP <= enrolled <= self.agreement.invited:
            raise SecureAggregationError(
                f"{enrolled} parties enrolled: expected {SMALLEST_GROUP} to "
                f"{self.agreement.invited}"
            )
        others = self.agreement.scheme.degree(enrolled)
        if len(roster) != others + 1:
            raise SecureAggregationError(
                f"keys of {len(roster) - 1} others: expected {others} of {enrolled} parties"
            )
        keys = [key for entry in roster.values() for key in (entry.sealing, entry.masking)]
        if len(set(keys)) != len(keys):
            raise SecureAggregationError("two parties of the roster have the same key")

    def _check_vector(self, vector: NDArray[np.int64]) -> None:
        if vector.shape != (self.agreement.size,) or vector.dtype != np.int64:
            raise ValueError(
                f"a vector of shape {vector.shape} and type {vector.dtype}: "
                f"expected ({self.agreement.size},) int64"
            )
        # Not by abs(), which the smallest integer survives unchanged.
        extreme = max(int(vector.max()), -int(vector.min()))
        if extreme > self.agreement.largest:
            raise OverflowError(
                f"an entry of magnitude {extreme}: at most {self.agreement.largest} with "
                f"{self.agreement.invited} parties; use a larger quantisation step"
            )

    def _require_enough(self, parties: Collection[int], did: str) -> None:
        """Enough to join all secrets, and enough of them who have something new."""
        needed = self.agreement.threshold(self.enrolled)
        if len(parties) < needed:
            raise SecureAggregationError(
                f"{len(parties)} of {len(self._roster)} parties {did}: {needed} are needed"
                f"{self.agreement.scheme.remark}"
            )
        if self.agreement.scheme.counts:
            self.agreement.require_new(len(self._new.intersection(parties)), self.enrolled, did)
