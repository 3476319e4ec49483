"""Who the parties are beyond one sum: signing keys, and the roster that each of them pins.

A server that passes on keys could pass on its own. So each party has a long-lived Ed25519 key, and
knows the public keys of all others beforehand, from elsewhere than from the server. With each sum
it signs its keys of that sum together with the digest of the roster that it pins.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocl.errors import ConfigError
from protocl.federation.secure.protocol.agreement import SMALLEST_GROUP
from protocl.federation.secure.protocol.schemes import LARGEST_ROSTER, Pinned

MEMBER_BYTES = 32
SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class Roster:
    """The public Ed25519 keys of all who may take part.

    Attributes:
        members: 32 bytes by name.

    Raises:
        ConfigError: there are fewer than 3 or more than 128, two are the same, or one is no key.
    """

    members: Mapping[str, bytes]

    def __post_init__(self) -> None:
        keys = list(self.members.values())
        if not SMALLEST_GROUP <= len(keys) <= LARGEST_ROSTER:
            raise ConfigError(
                f"a roster of {len(keys)} members: expected {SMALLEST_GROUP} to {LARGEST_ROSTER}; "
                "for more parties use secure=graph"
            )
        if len(set(keys)) != len(keys) or any(len(key) != MEMBER_BYTES for key in keys):
            raise ConfigError("members of a roster must have different keys of 32 bytes")

    @cached_property
    def digest(self) -> str:
        """Equal for all who pin the same keys, whatever they call them."""
        return hashlib.sha256(b"".join(sorted(self.members.values()))).hexdigest()

    @property
    def scheme(self) -> Pinned:
        """How its members share."""
        return Pinned(len(self.members), self.digest)

    def name_of(self, member: bytes) -> str:
        """What a member is called.

        Raises:
            KeyError: it is none.
        """
        return {key: name for name, key in self.members.items()}[member]

    @classmethod
    def load(cls, path: Path) -> Roster:
        """Read a JSON file of names and keys in hexadecimal digits.

        Raises:
            ConfigError: the file is missing or is none of these.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls({name: bytes.fromhex(key) for name, key in values.items()})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path} is no roster: {error}; expected a JSON file of names and public keys, "
                'such as {"hospital-1": "9f3a..."}, the same on the server and on every node'
            ) from error


@dataclass(frozen=True)
class Signer:
    """A member of a roster that can sign.

    Attributes:
        private: its Ed25519 key, 32 bytes.
        roster: the one that it pins.

    Raises:
        ConfigError: the roster does not have it.
    """

    private: bytes
    roster: Roster

    def __post_init__(self) -> None:
        if self.member not in self.roster.members.values():
            raise ConfigError(
                f"this party's public key {self.member.hex()} is not on the roster that it pins"
            )

    @cached_property
    def member(self) -> bytes:
        """Its public key."""
        return public_key(self.private)

    def sign(self, text: bytes) -> bytes:
        """64 bytes that only it can make."""
        return sign(self.private, text)


def new_private_key() -> bytes:
    """A new Ed25519 key, 32 bytes."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


def public_key(private: bytes) -> bytes:
    """The public key of an Ed25519 key."""
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def sign(private: bytes, text: bytes) -> bytes:
    """The signature of a text, 64 bytes."""
    return Ed25519PrivateKey.from_private_bytes(private).sign(text)


def is_signed(member: bytes, signature: bytes, text: bytes) -> bool:
    """Whether ``member`` signed ``text``."""
    try:
        Ed25519PublicKey.from_public_bytes(member).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True
