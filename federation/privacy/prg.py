"""Random words from a stream cipher: masks from shared keys, noise from the system's entropy."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

KEY_BYTES = 32

_PIECE = 1 << 14
"""Words made at once (128 KiB): a piece stays in the processor's cache until it is used."""


class KeyStream:
    """The ChaCha20 stream of a 256-bit key, as unsigned 64-bit words.

    A generator of the numpy kind will not do here: its state follows from its outputs, and with it
    every mask and all noise.

    Args:
        key: 32 bytes. Equal keys give equal streams, so a key is used for one stream only. By
            default it comes from the operating system's generator.

    Raises:
        ValueError: the key has another length.
    """

    def __init__(self, key: bytes | None = None) -> None:
        key = os.urandom(KEY_BYTES) if key is None else key
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes: expected {KEY_BYTES}")
        # The nonce may stay zero: no key is used twice.
        self._encryptor = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next ``count`` words of the stream, ``(count,)``, uniform over 64 bits."""
        words = np.empty(count, dtype=np.uint64)
        for place, piece in self._pieces(count):
            words[place] = piece
        return words

    def add_to(self, total: NDArray[np.uint64], *, negative: bool = False) -> None:
        """Add the next words of the stream to ``total``, or subtract them, modulo 2^64."""
        for place, piece in self._pieces(len(total)):
            if negative:
                total[place] -= piece
            else:
                total[place] += piece

    def _pieces(self, count: int) -> Iterator[tuple[slice, NDArray[np.uint64]]]:
        """Consecutive places and their words, which are overwritten by those that follow."""
        size = 8 * min(count, _PIECE)
        zeros, stream = memoryview(bytes(size)), bytearray(size)
        words = np.frombuffer(stream, dtype="<u8")
        for start in range(0, count, _PIECE):
            length = min(_PIECE, count - start)
            self._encryptor.update_into(zeros[: 8 * length], stream)
            yield slice(start, start + length), words[:length]

    def below(self, bound: int, count: int) -> NDArray[np.int64]:
        """``count`` integers, exactly uniform over ``0 .. bound - 1`` for ``bound <= 2^63``."""
        # Words past the last whole multiple of the bound would favour small remainders.
        last = 2**64 // bound * bound - 1
        kept: list[NDArray[np.uint64]] = []
        missing = count
        while missing > 0:
            words = self.words(missing)
            words = words[words <= np.uint64(last)]
            kept.append(words % np.uint64(bound))
            missing -= len(words)
        return np.concatenate(kept or [np.empty(0, np.uint64)]).astype(np.int64)
