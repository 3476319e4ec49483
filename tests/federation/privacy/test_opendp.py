"""The discrete Gaussian beside that of OpenDP, an implementation of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from protocl.federation.privacy.discrete_gaussian import discrete_gaussian
from protocl.federation.privacy.mechanism import GaussianMechanism
from protocl.federation.privacy.prg import KeyStream

opendp = pytest.importorskip("opendp", reason="pip install opendp, of the extra 'dev'")

SAMPLES = 20_000


def measurement(scale: float):
    """OpenDP's discrete Gaussian on vectors of integers; its privacy map is in zCDP."""
    import opendp.prelude as dp

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=int)), dp.l2_distance(T=float)
    return dp.m.make_gaussian(*space, scale=scale)


@pytest.mark.parametrize("variance", [1, 14, 1600])
def test_samples_are_of_the_same_distribution(variance: int) -> None:
    """Chi-square of two samples, in bins of a third of a standard deviation."""
    scale = math.sqrt(variance)
    theirs = np.asarray(measurement(scale)([0] * SAMPLES))
    ours = discrete_gaussian(variance, SAMPLES, KeyStream())
    inner = np.unique(np.round(np.arange(-2.5 * scale, 2.6 * scale, max(1.0, scale / 3)))) - 0.5
    edges = np.concatenate([[-np.inf], inner, [np.inf]])
    table = np.stack([np.histogram(sample, edges)[0] for sample in (ours, theirs)])
    assert chi2_contingency(table).pvalue > 1e-6
    assert ours.std() == pytest.approx(theirs.std(), rel=0.05)


@pytest.mark.parametrize(("epsilon", "delta"), [(1.0, 1e-5), (8.0, 1e-5), (0.5, 1e-6)])
def test_epsilon_is_theirs_within_the_slack_of_an_accountant(epsilon: float, delta: float) -> None:
    """Both convert a Renyi bound; ours is Google's accountant, theirs a bound from zCDP."""
    import opendp.prelude as dp

    ours = GaussianMechanism.for_budget(1.0, epsilon, delta)
    noise = dp.c.make_zCDP_to_approxDP(measurement(ours.noise_multiplier))
    theirs = noise.map(1.0).epsilon(delta=delta)
    assert theirs == pytest.approx(epsilon, rel=0.05)
    assert theirs <= epsilon * 1.001, "what is promised is not less than they find"
