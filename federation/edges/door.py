"""Releases: signed by the edge that a client leaves, looked at by the one to which it comes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protocl.errors import ConfigError
from protocl.federation.exactly_once.client import name_of_life
from protocl.federation.exactly_once.release import Release
from protocl.federation.secure.protocol.identity import (
    MEMBER_BYTES,
    is_signed,
    new_private_key,
    public_key,
    sign,
)
from protocl.federation.wire.messages import Received
from protocl.federation.wire.validation import RejectedError
from protocl.io.atomic import atomic_write

ROSTER = "edges.json"
"""Names and public keys of all edges, the same at each."""


@dataclass(frozen=True)
class EdgeDoor:
    """See :class:`protocl.federation.server.aggregation.Door`.

    Attributes:
        name: of this edge.
        edges: name -> public Ed25519 key of 32 bytes, of all edges whose releases are accepted.
    """

    name: str
    edges: Mapping[str, bytes]

    def __call__(self, received: Received) -> Received:
        """A contribution, with the number of the move that its release is of.

        Raises:
            RejectedError: the release is not for this edge or this client, or not signed by the
                edge that it says.
        """
        try:
            release, signature = Release.read(received.release)
            signed = bytes.fromhex(signature)
        except ValueError as error:
            raise RejectedError("release", str(error)) from error
        if not self._is_signed(release, signed):
            raise RejectedError(
                "release",
                f"edge '{release.source:.80}' did not sign this release; the edges known here are "
                f"{', '.join(sorted(self.edges)) or 'none'}",
            )
        names = {name_of_life(life) for life in (received.epoch, *received.replaces)}
        if release.target != self.name or not names.intersection(release.lives):
            raise RejectedError(
                "release",
                f"this release is of client '{release.client:.80}' for edge "
                f"'{release.target:.80}'; this is edge '{self.name}', or it is another client",
            )
        return received._replace(moves=release.number)

    def _is_signed(self, release: Release, signature: bytes) -> bool:
        key = self.edges.get(release.source)
        return key is not None and is_signed(key, signature, release.to_text().encode())


def sign_release(release: Release, private: bytes) -> str:
    """What a client carries; signed with the private Ed25519 key of the edge that it leaves."""
    return release.signed(sign(private, release.to_text().encode()).hex())


def read_roster(path: Path) -> dict[str, bytes]:
    """Names and public keys of edges, of a JSON file; empty where there is no file.

    Raises:
        ConfigError: the file is damaged, or a key is none.
    """
    if not path.exists():
        return {}
    try:
        keys = {
            str(name): bytes.fromhex(key)
            for name, key in json.loads(path.read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no list of edges: {error}; expected a JSON file of names and public keys, "
            'such as {"edge-0": "9f3a..."}'
        ) from error
    if wrong := [name for name, key in keys.items() if len(key) != MEMBER_BYTES]:
        raise ConfigError(f"{path}: the keys of {', '.join(wrong)} have not 32 bytes")
    return keys


def own_key(path: Path) -> bytes:
    """The private key in a file that only its owner may read; made where there is none."""
    if not path.exists():
        atomic_write(path, new_private_key().hex())
        path.chmod(0o600)
    key = bytes.fromhex(path.read_text(encoding="utf-8").strip())
    public_key(key)
    return key
