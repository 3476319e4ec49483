"""Arrays as bytes, encrypted under a key of their own and marked by a hash that needs it."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from protocl.errors import DataError

NAME = 16
"""Bytes of the name of a key."""

_NONCE, _LENGTH = 12, 4


class Key(NamedTuple):
    """What one contribution can be read with; nothing of it is left where this is destroyed.

    Attributes:
        name: 16 random bytes by which it is found.
        secret: 32 random bytes.
    """

    name: bytes
    secret: bytes

    @classmethod
    def new(cls) -> Key:
        """Draw one."""
        return cls(secrets.token_bytes(NAME), secrets.token_bytes(32))

    def seal(self, content: bytes, purpose: str) -> bytes:
        """Encrypt by AES-256-GCM; only the same ``purpose`` opens it."""
        nonce = secrets.token_bytes(_NONCE)
        return nonce + AESGCM(self.secret).encrypt(nonce, content, purpose.encode())

    def open(self, sealed: bytes, purpose: str) -> bytes:
        """Decrypt what :meth:`seal` gave.

        Raises:
            DataError: it was changed, or sealed by another key.
        """
        try:
            return AESGCM(self.secret).decrypt(sealed[:_NONCE], sealed[_NONCE:], purpose.encode())
        except InvalidTag as error:
            raise DataError(
                f"a row of the books ({purpose}) is damaged: it is not what was sealed; "
                "restore a backup"
            ) from error

    def mark(self, *contents: bytes) -> bytes:
        """HMAC-SHA256 of ``contents``, which tells nothing of them without the key."""
        salt = hmac.digest(self.secret, b"mark", "sha256")
        whole = hmac.new(salt, digestmod=hashlib.sha256)
        for content in contents:
            whole.update(len(content).to_bytes(8))
            whole.update(content)
        return whole.digest()


def to_bytes(arrays: Mapping[str, NDArray[Any]], more: object = None) -> bytes:
    """Arrays of numbers, and what else JSON holds, for :func:`from_bytes`."""
    listed = [[name, a.dtype.str, list(a.shape)] for name, a in arrays.items()]
    head = json.dumps([listed, more]).encode()
    return b"".join((len(head).to_bytes(_LENGTH), head, *(a.tobytes() for a in arrays.values())))


def from_bytes(content: bytes) -> tuple[dict[str, NDArray[Any]], Any]:
    """What :func:`to_bytes` was given; the arrays lie in ``content`` and cannot be written to."""
    place = _LENGTH + int.from_bytes(content[:_LENGTH])
    listed, more = json.loads(content[_LENGTH:place])
    arrays = {}
    for name, kind, shape in listed:
        number = int(np.prod(shape))
        dtype = np.dtype(kind)
        arrays[name] = np.frombuffer(content, dtype, number, place).reshape(shape)
        place += number * dtype.itemsize
    return arrays, more
