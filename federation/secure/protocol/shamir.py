"""Shamir's secret sharing over a prime field (Communications of the ACM 22, 1979).

A secret of 32 bytes is the value at zero of a polynomial of degree ``threshold - 1`` with uniform
coefficients; a share is its value elsewhere. Any ``threshold`` shares give the secret; fewer say
nothing about it, whatever the computing power.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from functools import lru_cache

PRIME = 2**256 + 297
"""The smallest prime above all secrets of 32 bytes."""

SECRET_BYTES = 32
SHARE_BYTES = 33


class SharingError(ValueError):
    """Shares that do not give a secret."""


def split_secret(secret: bytes, points: Collection[int], threshold: int) -> dict[int, bytes]:
    """Shares of ``secret``, one for each point.

    Args:
        secret: 32 bytes.
        points: distinct whole numbers from 1, below the prime.
        threshold: how many shares give the secret back.

    Raises:
        ValueError: the secret has another length, a point is not usable, or there are fewer points
            than the threshold.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret of {len(secret)} bytes: expected {SECRET_BYTES}")
    if any(not 0 < point < PRIME for point in points) or len(set(points)) != len(points):
        raise ValueError(f"points {list(points)}: expected distinct whole numbers from 1")
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold={threshold}: expected 1 to {len(points)}, one for a point")
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    coefficients.append(int.from_bytes(secret, "big"))
    return {point: _value(coefficients, point) for point in points}


def join_shares(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret behind ``threshold`` or more shares, by their points.

    Raises:
        SharingError: there are too few shares. Wrong ones are noticed only if their value is none
            that a secret can have, so a secret that matters is checked against a digest as well.
    """
    if len(shares) < threshold:
        raise SharingError(f"{len(shares)} shares of a secret: {threshold} are needed")
    points = tuple(sorted(shares)[:threshold])
    weights = _weights_at_zero(points)
    value = sum(
        weight * int.from_bytes(shares[point], "big")
        for point, weight in zip(points, weights, strict=True)
    )
    value %= PRIME
    if value >= 2 ** (8 * SECRET_BYTES):
        raise SharingError("the shares do not belong to one secret")
    return value.to_bytes(SECRET_BYTES, "big")


def _value(coefficients: list[int], point: int) -> bytes:
    """The polynomial at ``point``, highest coefficient first (Horner's rule)."""
    value = 0
    for coefficient in coefficients:
        value = (value * point + coefficient) % PRIME
    return value.to_bytes(SHARE_BYTES, "big")


@lru_cache(maxsize=64)
def _weights_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's basis polynomials at zero; those who answer are the same for all secrets."""
    weights = []
    for own in points:
        numerator, denominator = 1, 1
        for other in points:
            if other != own:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - own) % PRIME
        weights.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return tuple(weights)
