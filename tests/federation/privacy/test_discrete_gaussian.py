"""The exact discrete Gaussian, against its definition."""

from __future__ import annotations

import math
from fractions import Fraction
from unittest.mock import Mock

import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from protocl.federation.privacy import discrete_gaussian as module
from protocl.federation.privacy.discrete_gaussian import MAX_VARIANCE, discrete_gaussian
from protocl.federation.privacy.prg import KeyStream

KEY = bytes(range(32))


@pytest.mark.parametrize("variance", [1, 2, 9, 100])
def test_frequencies_follow_the_definition(variance: int) -> None:
    samples = discrete_gaussian(variance, 100_000, KeyStream(KEY))
    reach = math.ceil(3.5 * math.sqrt(variance))
    values = np.arange(-6 * reach, 6 * reach + 1)
    mass = np.exp(-(values**2) / (2 * variance))
    mass /= mass.sum()
    # Values beyond the reach are rare; they are counted with the last one.
    bins = np.clip(values, -reach, reach) + reach
    expected = np.bincount(bins, weights=mass) * len(samples)
    found = np.bincount(np.clip(samples, -reach, reach) + reach, minlength=2 * reach + 1)
    assert chisquare(found, expected).pvalue > 1e-4


@pytest.mark.parametrize("variance", [10**12, 10**23, MAX_VARIANCE])
def test_wide_noise_is_gaussian(variance: int) -> None:
    """Far above one step the shape is the continuous one, also where float64 has no integers."""
    samples = discrete_gaussian(variance, 20_000, KeyStream(KEY)) / math.sqrt(variance)
    assert kstest(samples, "norm").pvalue > 1e-4
    assert abs(samples.std() - 1) < 5 / math.sqrt(2 * 20_000)
    assert abs(samples.mean()) < 5 / math.sqrt(20_000)


def test_standard_deviation_is_measured_to_a_percent() -> None:
    samples = discrete_gaussian(25, 300_000, KeyStream(KEY))
    assert samples.std() == pytest.approx(5, rel=0.01)


@pytest.mark.parametrize("gamma", [Fraction(1), Fraction(7, 3), Fraction(1, 10**6)])
def test_undecided_trials_are_settled_exactly(gamma: Fraction) -> None:
    """A word on either side of the threshold is settled as exact arithmetic settles it."""
    threshold = math.floor(Fraction(math.exp(-float(gamma))) * 2**64)
    for offset, success in ((-(2**14), True), (2**14, False)):
        assert module._settle(threshold + offset, gamma, KeyStream(KEY)) is success


def test_settling_draws_more_bits_where_64_do_not_do() -> None:
    """The 64 bits of exp(-1) decide nothing; 64 further ones, above or below its own, do."""
    digits = "0.36787944117144232159552377016146086744581113103176783450783680169746"
    own = int(Fraction(digits) * 2**128)
    word, rest = divmod(own, 2**64)
    for following, success in ((rest - 1, True), (rest + 1, False)):
        source = Mock(words=Mock(return_value=np.array([following], dtype=np.uint64)))
        assert module._settle(word, Fraction(1), source) is success
        source.words.assert_called_once_with(1)


def test_certain_trials_always_succeed() -> None:
    source = Mock(words=Mock(return_value=np.array([0, 2**64 - 1], dtype=np.uint64)))
    fallback = KeyStream(KEY)
    source.words.side_effect = [source.words.return_value, *(fallback.words(1) for _ in range(9))]
    success = module._bernoulli_exp(np.zeros(2), lambda i: Fraction(0), source)
    assert success.all()


def test_all_trials_settled_exactly_give_the_same_law() -> None:
    """With the margin at 1, every trial goes through decimal arithmetic."""
    trials = module._bernoulli_exp(
        np.full(2_000, 0.5), lambda i: Fraction(1, 2), KeyStream(KEY), margin=1.0
    )
    quick = module._bernoulli_exp(np.full(2_000, 0.5), lambda i: Fraction(1, 2), KeyStream(KEY))
    np.testing.assert_array_equal(trials, quick)
    assert abs(trials.mean() - math.exp(-0.5)) < 5 * math.sqrt(0.24 / 2_000)


@pytest.mark.parametrize("variance", [0, MAX_VARIANCE + 1])
def test_refuses_variances_out_of_range(variance: int) -> None:
    with pytest.raises(ValueError, match=r"expected 1 to 2\^100"):
        discrete_gaussian(variance, 1, KeyStream())


def test_keys_decide() -> None:
    np.testing.assert_array_equal(
        discrete_gaussian(50, 100, KeyStream(KEY)), discrete_gaussian(50, 100, KeyStream(KEY))
    )
    one, other = (discrete_gaussian(10**9, 9, KeyStream()) for _ in range(2))
    assert (one != other).any()
