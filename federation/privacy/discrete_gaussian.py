"""The discrete Gaussian on the integers, drawn exactly.

Noise made of floating-point numbers leaks: which of them can occur depends on the value under the
noise (Mironov, "On significance of the least significant bits for differential privacy", CCS
2012), and a proof about real numbers says nothing about them. Statistics in fixed point are
integers, and so is this noise: ``P[X = x]`` proportional to ``exp(-x^2 / (2 sigma^2))``. It gives
the same Renyi divergence bound as continuous Gaussian noise of that ``sigma`` (Canonne, Kamath and
Steinke, "The discrete Gaussian for differential privacy", NeurIPS 2020, section 2.3), so a Renyi
accountant of the Gaussian mechanism applies.

The sampler is theirs (Algorithms 1 to 3), on whole arrays. Each of its decisions compares a
uniform number with ``exp(-gamma)``. Double precision settles all but some 2^-43 of them with a
proven margin; those are settled in decimal arithmetic with as many further bits as it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from protocl.federation.privacy.prg import KeyStream

MAX_VARIANCE = 2**100
"""Keeps every sample within 64 bits."""

_MARGIN = 2.0**-44
"""Above the rounding error of ``exp(-gamma)`` in double precision for every gamma used here:
``gamma`` is off by less than ``2^-51 d (d + 1)`` at a distance of ``d sigma``, which the factor
``exp(-d^2 / 2)`` keeps below ``2^-49``."""

_CHUNK = 1 << 18


def discrete_gaussian(variance: int, size: int, source: KeyStream) -> NDArray[np.int64]:
    """Independent samples of the discrete Gaussian.

    Args:
        variance: ``sigma^2``, from 1 to :data:`MAX_VARIANCE`.
        size: number of samples.
        source: where the randomness comes from.

    Returns:
        ``(size,)`` int64.

    Raises:
        ValueError: the variance is out of range.
    """
    if not 1 <= variance <= MAX_VARIANCE:
        raise ValueError(
            f"a noise variance of {variance} squared steps: expected 1 to 2^100; "
            "change the quantisation step"
        )
    samples = np.empty(size, dtype=np.int64)
    for start in range(0, size, _CHUNK):
        piece = samples[start : start + _CHUNK]
        filled = 0
        while filled < len(piece):
            found = _candidates(variance, 3 * (len(piece) - filled) + 16, source)
            found = found[: len(piece) - filled]
            piece[filled : filled + len(found)] = found
            filled += len(found)
    return samples


def _candidates(variance: int, trials: int, source: KeyStream) -> NDArray[np.int64]:
    """Those of some ``trials`` proposals that are accepted (Algorithm 3)."""
    scale = isqrt(variance) + 1
    proposals = _discrete_laplace(scale, trials, source)
    distance = np.abs(proposals).astype(np.float64) - variance / scale

    def exact(i: int) -> Fraction:
        offset = abs(int(proposals[i])) * scale - variance
        return Fraction(offset**2, 2 * variance * scale**2)

    return proposals[_bernoulli_exp(distance**2 / (2.0 * variance), exact, source)]


def _discrete_laplace(scale: int, trials: int, source: KeyStream) -> NDArray[np.int64]:
    """Samples with ``P[x]`` proportional to ``exp(-|x| / scale)``, of ``trials`` (Algorithm 2)."""
    remainder = source.below(scale, trials)
    accepted = _bernoulli_exp(
        remainder / scale, lambda i: Fraction(int(remainder[i]), scale), source
    )
    remainder = remainder[accepted]
    magnitude = remainder + scale * _geometric(len(remainder), source)
    negative = source.words(len(magnitude)) & np.uint64(1) == 1
    # Zero would otherwise be drawn twice as often as it should: as +0 and as -0.
    return np.where(negative, -magnitude, magnitude)[~(negative & (magnitude == 0))]


def _geometric(size: int, source: KeyStream) -> NDArray[np.int64]:
    """How often in a row a trial of probability ``1/e`` succeeds."""
    successes = np.zeros(size, dtype=np.int64)
    active = np.arange(size)
    while len(active):
        active = active[_bernoulli_exp(np.ones(len(active)), lambda i: Fraction(1), source)]
        successes[active] += 1
    return successes


def _bernoulli_exp(
    gamma: NDArray[np.float64],
    exact: Callable[[int], Fraction],
    source: KeyStream,
    margin: float = _MARGIN,
) -> NDArray[np.bool_]:
    """Trials that succeed with probability ``exp(-gamma)``.

    Args:
        gamma: ``(N,)`` non-negative, in double precision.
        exact: the exact value behind ``gamma[i]``.
        source: of the uniform numbers.
        margin: what double precision may be wrong by.
    """
    words = source.words(len(gamma))
    difference = words * 2.0**-64 - np.exp(-gamma)
    success: NDArray[np.bool_] = difference < 0
    for i in np.flatnonzero(np.abs(difference) <= margin):
        success[i] = _settle(int(words[i]), exact(int(i)), source)
    return success


def _settle(word: int, gamma: Fraction, source: KeyStream) -> bool:
    """Whether the uniform number that begins with the bits ``word`` is below ``exp(-gamma)``."""
    bits, digits = 64, 40
    while True:
        context = Context(prec=digits)
        power = context.divide(Decimal(-gamma.numerator), Decimal(gamma.denominator))
        threshold = Fraction(context.exp(power))
        # The quotient is rounded once, and so is the exponential.
        error = Fraction(4 + abs(int(power)), 10 ** (digits - 2))
        if Fraction(word + 1, 2**bits) <= threshold - error:
            return True
        if Fraction(word, 2**bits) >= threshold + error:
            return False
        word = (word << 64) | int(source.words(1)[0])
        bits, digits = bits + 64, digits + 20
