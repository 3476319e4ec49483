"""Secret sharing over a prime field."""

from __future__ import annotations

import secrets
from itertools import combinations

import pytest
import sympy

from protocl.federation.secure.protocol.shamir import (
    PRIME,
    SHARE_BYTES,
    SharingError,
    join_shares,
    split_secret,
)


def test_field_is_a_field_and_holds_every_secret() -> None:
    assert sympy.isprime(PRIME)
    assert PRIME > 2**256


@pytest.mark.parametrize(
    "secret", [bytes(32), b"\xff" * 32, secrets.token_bytes(32)], ids=["zero", "largest", "random"]
)
def test_every_subset_of_the_threshold_joins(secret: bytes) -> None:
    shares = split_secret(secret, points=[1, 2, 5, 9, 11], threshold=3)
    assert {len(share) for share in shares.values()} == {SHARE_BYTES}
    for chosen in combinations(shares, 3):
        assert join_shares({point: shares[point] for point in chosen}, threshold=3) == secret
    assert join_shares(shares, threshold=3) == secret


def test_fewer_shares_fit_every_secret() -> None:
    """With one share less, each candidate for the secret is explained by one missing share."""
    secret = secrets.token_bytes(32)
    shares = split_secret(secret, points=[1, 2, 3], threshold=3)
    with pytest.raises(SharingError, match="2 shares of a secret: 3 are needed"):
        join_shares({1: shares[1], 2: shares[2]}, threshold=3)
    for other in (bytes(32), secrets.token_bytes(32)):
        # A quadratic through (0, other) and both shares exists; it has its own value at 3.
        f0, f1, f2 = (int.from_bytes(v, "big") for v in (other, shares[1], shares[2]))
        third = ((f0 - 3 * f1 + 3 * f2) % PRIME).to_bytes(SHARE_BYTES, "big")
        assert join_shares({1: shares[1], 2: shares[2], 3: third}, threshold=3) == other


def test_shares_are_fresh_each_time() -> None:
    secret = secrets.token_bytes(32)
    assert split_secret(secret, [1, 2], 2) != split_secret(secret, [1, 2], 2)


@pytest.mark.parametrize(
    ("secret", "points", "threshold", "message"),
    [
        (bytes(31), [1, 2], 2, "31 bytes: expected 32"),
        (bytes(32), [0, 1], 2, "whole numbers from 1"),
        (bytes(32), [1, 1], 2, "distinct"),
        (bytes(32), [1, 2], 3, "threshold=3"),
    ],
)
def test_refusals(secret: bytes, points: list[int], threshold: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_secret(secret, points, threshold)
