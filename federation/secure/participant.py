"""The client's side of a secure sum (:mod:`protocl.federation.secure.aggregator`)."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from numpy.typing import NDArray

from protocl.federation.privacy.prg import KEY_BYTES, KeyStream
from protocl.federation.secure.keys import (
    SMALLEST_GROUP,
    Agreement,
    PublicKeys,
    Revealed,
    SecureAggregationError,
    adds_mask,
    join_entries,
    pairwise_mask,
    shared_key,
    split_entries,
)
from protocl.federation.secure.shamir import SHARE_BYTES, split_secret

NONCE_BYTES = 12
SEALED_BYTES = NONCE_BYTES + 2 * SHARE_BYTES + 1 + 16
"""Two shares and whether there is something new, sealed for one party: nonce, ciphertext, tag."""


class Participant:
    """A party of one sum. Its methods are called in order, each once.

    A secret's shares must never be given away for both of a party's secrets, or the server could
    strip that party's vector of all masks; hence nothing here can be called twice, but the last
    step with the very same survivors, since an answer may be lost.

    Args:
        identity: of the party, a whole number from 1.
        agreement: the terms, checked against the party's own layout.
    """

    def __init__(self, identity: int, agreement: Agreement) -> None:
        if identity < 1:
            raise ValueError(f"identity={identity}: expected a whole number from 1")
        self.identity = identity
        self.agreement = agreement
        self._step = "advertise"
        self._sealing = X25519PrivateKey.generate()
        self._masking = X25519PrivateKey.generate()
        self._seed = os.urandom(KEY_BYTES)
        self._roster: Mapping[int, PublicKeys] = {}
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
            "roster": join_entries({i: k.to_bytes() for i, k in self._roster.items()}),
            "shares": join_entries({i: a + b for i, (a, b) in self._shares.items()}),
            "new": join_entries(dict.fromkeys(self._new, b"")),
            "survivors": join_entries(dict.fromkeys(self._survivors, b"")),
        }

    @classmethod
    def restore(
        cls, identity: int, agreement: Agreement, state: Mapping[str, bytes | str]
    ) -> Participant:
        """The party that :meth:`state` was taken of, in another process perhaps."""
        party = cls(identity, agreement)
        secret = {name: value for name, value in state.items() if isinstance(value, bytes)}
        party._step = str(state["step"])
        party._sealing = X25519PrivateKey.from_private_bytes(secret["sealing"])
        party._masking = X25519PrivateKey.from_private_bytes(secret["masking"])
        party._seed = secret["seed"]
        roster = split_entries(secret["roster"], PublicKeys.BYTES)
        party._roster = {i: PublicKeys.from_bytes(keys) for i, keys in roster.items()}
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

    def share(self, roster: Mapping[int, PublicKeys], *, new: bool) -> dict[int, bytes]:
        """Step 2: shares of the two secrets, sealed for each of the others.

        Args:
            roster: keys of all who enrolled, by identity.
            new: whether the vector will be of something new; a vector of zeros hides nobody. It is
                sealed with the shares, for the others must not have to believe the server.

        Raises:
            SecureAggregationError: there are too few or too many parties, this one is not among
                them, or two have the same keys.
        """
        self._enter("share", then="mask")
        self._check_roster(roster)
        self._roster = dict(roster)
        threshold = self.agreement.threshold(len(roster))
        seeds = split_secret(self._seed, list(roster), threshold)
        keys = split_secret(self._masking.private_bytes_raw(), list(roster), threshold)
        self._shares[self.identity] = (seeds[self.identity], keys[self.identity])
        self._new = {self.identity} if new else set()
        return {
            other: self._seal(other, seeds[other] + keys[other] + bytes([new]))
            for other in roster
            if other != self.identity
        }

    def mask(self, vector: NDArray[np.int64], received: Mapping[int, bytes]) -> NDArray[np.uint64]:
        """Step 3: the vector under its own mask and one for each party that shared.

        Args:
            vector: ``(size,)`` int64.
            received: sealed shares, by the party that they come from.

        Returns:
            ``(size,)``, uniform over all 64-bit words to anybody who lacks a mask.

        Raises:
            SecureAggregationError: too few parties shared, or a share was not sealed by its sender.
            TooFewNewError: too few of those who shared have something new.
            OverflowError: an entry is so large that the sum could pass 64 bits.
        """
        self._check_vector(vector)
        self._enter("mask", then="unmask")
        for other, sealed in received.items():
            self._shares[other], new = self._open(other, sealed)
            self._new |= {other} if new else set()
        self._require_enough(self._shares, "shared")
        masked = vector.astype(np.uint64)
        KeyStream(self._seed).add_to(masked)
        for other in received:
            mask = pairwise_mask(self._masking, self._roster[other].masking, self.agreement)
            mask.add_to(masked, negative=not adds_mask(self.identity, other))
        return masked

    def unmask(self, survivors: Collection[int]) -> Revealed:
        """Step 4: shares of what it takes to remove the masks from the sum.

        Args:
            survivors: parties whose masked vectors arrived.

        Raises:
            SecureAggregationError: they are too few, not those who shared, or others than before.
            TooFewNewError: too few of them have something new.
        """
        arrived = set(survivors)
        if self.identity not in arrived or not arrived <= set(self._shares):
            raise SecureAggregationError(
                f"{sorted(arrived)} are said to have sent vectors: expected party {self.identity} "
                f"and others of {sorted(self._shares)}"
            )
        self._require_enough(arrived, "sent a vector")
        if arrived != self._survivors:
            self._enter("unmask", then="nothing")
            self._survivors = arrived
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
        own = roster.get(self.identity)
        if own is None or own.masking != self._masking.public_key().public_bytes_raw():
            raise SecureAggregationError(
                f"party {self.identity} is not in the roster as it enrolled"
            )
        if not SMALLEST_GROUP <= len(roster) <= self.agreement.invited:
            raise SecureAggregationError(
                f"{len(roster)} parties enrolled: expected {SMALLEST_GROUP} to "
                f"{self.agreement.invited}"
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
        enrolled = len(self._roster)
        needed = self.agreement.threshold(enrolled)
        if len(parties) < needed:
            raise SecureAggregationError(
                f"{len(parties)} of {enrolled} parties {did}: {needed} are needed"
            )
        self.agreement.require_new(len(self._new.intersection(parties)), enrolled, did)

    def _cipher(self, other: int) -> ChaCha20Poly1305:
        if other not in self._roster or other == self.identity:
            raise SecureAggregationError(f"shares from {other}, who is none of the other parties")
        key = shared_key(
            self._sealing, self._roster[other].sealing, b"protocl seal ", self.agreement
        )
        return ChaCha20Poly1305(key)

    def _seal(self, other: int, shares: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        route = f"{self.identity} to {other}".encode()
        return nonce + self._cipher(other).encrypt(nonce, shares, route)

    def _open(self, other: int, sealed: bytes) -> tuple[tuple[bytes, bytes], bool]:
        """The two shares of ``other``, and whether it has something new."""
        nonce, content = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        route = f"{other} to {self.identity}".encode()
        try:
            opened = self._cipher(other).decrypt(nonce, content, route)
        except (InvalidTag, ValueError) as error:
            raise SecureAggregationError(
                f"what came as shares of {other} was not sealed by {other} for {self.identity}"
            ) from error
        shares = opened[:SHARE_BYTES], opened[SHARE_BYTES : 2 * SHARE_BYTES]
        return shares, opened[2 * SHARE_BYTES :] == b"\x01"
