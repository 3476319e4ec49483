"""The stream of words under masks and noise."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from scipy.stats import chisquare

from protocl.federation.privacy.prg import KeyStream

KEY = bytes(range(32))


@pytest.mark.parametrize("count", [1, 7, 1 << 14, 40_001])
def test_is_the_cipher_stream(count: int) -> None:
    stream = Cipher(ChaCha20(KEY, bytes(16)), mode=None).encryptor().update(bytes(8 * count))
    expected = np.frombuffer(stream, dtype="<u8")
    np.testing.assert_array_equal(KeyStream(KEY).words(count), expected)
    total = np.full(count, 2**64 - 1, dtype=np.uint64)
    KeyStream(KEY).add_to(total)
    np.testing.assert_array_equal(total + np.uint64(1), expected)
    KeyStream(KEY).add_to(total, negative=True)
    assert (total == 2**64 - 1).all()


def test_published_stream() -> None:
    """The first block for an all-zero key (RFC 8439, appendix A.1, test vector 1)."""
    assert KeyStream(bytes(32)).words(2).tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28"


def test_goes_on_where_it_stopped() -> None:
    stream = KeyStream(KEY)
    parts = [stream.words(5), stream.words(0), stream.words(6)]
    np.testing.assert_array_equal(np.concatenate(parts), KeyStream(KEY).words(11))


def test_keys_of_the_system_differ() -> None:
    assert KeyStream().words(1) != KeyStream().words(1)


@pytest.mark.parametrize("bound", [1, 6, 2**62 + 1])
def test_below_is_uniform(bound: int) -> None:
    values = KeyStream(KEY).below(bound, 60_000)
    assert values.min() >= 0
    assert values.max() < bound
    counts = np.bincount((values.astype(object) * min(bound, 6) // bound).astype(int))
    assert bound == 1 or chisquare(counts).pvalue > 1e-6


def test_below_has_no_bias_towards_small_values() -> None:
    """Plain remainders of 64-bit words by 3/4 of 2^63 would prefer the lower third, 3 to 2."""
    bound = 3 * 2**61
    values = KeyStream(KEY).below(bound, 30_000)
    assert abs((values < bound // 3).mean() - 1 / 3) < 5 * (2 / 9 / 30_000) ** 0.5


def test_refuses_short_keys() -> None:
    with pytest.raises(ValueError, match="16 bytes: expected 32"):
        KeyStream(bytes(16))
