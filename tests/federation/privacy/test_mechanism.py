"""Differential privacy: the clipping bound, the noise, its price, and what is refused."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from flwr.serverapp import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyConfig,
    RdpAccountant,
    SamplingMethod,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl import PrototypeMemory
from protocl.checks import assert_same, sample_batch
from protocl.data.config import BenchmarkConfig
from protocl.data.digits import load_digits
from protocl.federation.privacy.mechanism import (
    GaussianMechanism,
    PrivacyBudget,
    PrivacyError,
    clip_samples,
    clipped_memory,
)
from protocl.federation.privacy.postprocess import make_plausible
from protocl.federation.privacy.prg import KeyStream
from protocl.federation.privacy.release import (
    NoisyVector,
    PrivateRelease,
    PrivateSum,
    release_by_threshold,
)
from protocl.federation.privacy.vector import COUNT_SCALE, StatisticsLayout
from protocl.heads import Head, LinearDiscriminant, Mahalanobis, NearestMean, Ridge
from protocl.memory.batch import LEVELS
from protocl.memory.feature_maps import UnitNorm

STEP = 2.0**-16
KEY = bytes(range(32))


def release(
    level: str = "mean", z: float = 1.0, clip: float = 2.0, width: int = 5, **kind: object
) -> PrivateRelease:
    memory = PrototypeMemory(width, level, exact=True)  # type: ignore[arg-type]
    layout = StatisticsLayout(memory, [0, 3, 7, 41, 1000])
    return PrivateRelease(GaussianMechanism(clip, z), layout, **kind)  # type: ignore[arg-type]


# -- clipping -------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32), st.floats(1e-3, 1e4), st.floats(1e-3, 1e3), st.sampled_from([1, 3, 700])
)
def test_clipped_norm_never_passes_the_bound(
    seed: int, scale: float, clip: float, width: int
) -> None:
    """In integers, without rounding: the squared norm in steps is at most ``largest_square``."""
    generator = torch.Generator().manual_seed(seed)
    features = scale * torch.randn(20, width, generator=generator, dtype=torch.float64)
    features[0] = clip / math.sqrt(width)
    features[1] = torch.nextafter(features[0], torch.tensor(math.inf, dtype=torch.float64))
    steps = clip_samples(features, clip, STEP) / STEP
    assert torch.equal(steps, steps.round())
    bound = GaussianMechanism(clip, 1.0).largest_square(STEP)
    for row in steps.to(torch.int64).tolist():
        assert sum(entry**2 for entry in row) <= bound


def test_long_samples_reach_the_bound_and_short_ones_stay() -> None:
    features = torch.tensor([[30.0, 40.0], [0.25, -0.5], [0.0, 0.0]])
    clipped = clip_samples(features, 5.0, STEP)
    torch.testing.assert_close(clipped[0], torch.tensor([3.0, 4.0]).double(), atol=2e-5, rtol=0)
    assert torch.equal(clipped[1:], features[1:].double())


@pytest.mark.parametrize("level", LEVELS)
def test_one_sample_moves_each_part_by_its_sensitivity_at_most(level: str) -> None:
    agreed = release(level, clip=2.0)
    square = agreed.mechanism.largest_square(STEP)
    features, labels = sample_batch(5, samples=40)
    without = agreed.layout.pack(
        clipped_memory(agreed.layout.empty_memory(), features[1:], labels[1:], agreed.mechanism)
    )
    with_it = agreed.layout.pack(
        clipped_memory(agreed.layout.empty_memory(), features, labels, agreed.mechanism)
    )
    moved = (with_it - without).astype(object)
    bounds = {"count": COUNT_SCALE**2, "sum": square, "second": square**2}
    for name, part in agreed.layout.parts.items():
        moved_by = int((moved[part] ** 2).sum())
        assert 0.99 * bounds[name] * (0.3 if name == "second" else 1) < moved_by <= bounds[name]


def test_what_the_map_gives_is_clipped() -> None:
    memory = PrototypeMemory(5, exact=True, feature_map=UnitNorm(), raw_means=True, fingerprint="f")
    features, labels = sample_batch(5)
    clipped = clipped_memory(memory, features, labels, GaussianMechanism(0.5, 1.0), [3, 7])
    assert clipped.classes.tolist() == [3, 7]
    assert clipped.describe() == memory.describe()
    assert clipped.fingerprint == "f"
    of_threes = features[labels == 3].double()
    unit = torch.nn.functional.normalize(of_threes)
    torch.testing.assert_close(clipped.means[0], 0.5 * unit.mean(0), atol=1e-4, rtol=0)
    raw = 0.5 * unit.mean(0)
    torch.testing.assert_close(clipped.unmapped_means[0], raw, atol=1e-4, rtol=0)


# -- noise ----------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["central", "local", "distributed"])
def test_noise_of_the_sum_is_as_stated(placement: str) -> None:
    """Four clients without samples: what is published is noise, of a known spread."""
    memory = PrototypeMemory(300, "diagonal", exact=True)
    layout = StatisticsLayout(memory, range(20))
    mechanism = GaussianMechanism(clip=3.0, noise_multiplier=1.5)
    agreed = PrivateRelease(mechanism, layout, placement, contributors=4)  # type: ignore[arg-type]
    total = PrivateSum(agreed)
    source = KeyStream(KEY)
    nothing = torch.zeros(0, 300), torch.zeros(0, dtype=torch.int64)
    for _ in range(4):
        total.add(agreed.contribution(*nothing, source=source))
    vector = total._total
    if placement == "central":
        assert not vector.any()
        vector = vector + mechanism.noise(layout, source=source)
    times = {"central": 1, "distributed": 1, "local": 2}[placement]
    stated = {"count": COUNT_SCALE, "sum": 3.0 / STEP, "second": 9.0 / STEP**2}
    for name, part in layout.parts.items():
        wanted = 1.5 * math.sqrt(3) * stated[name] * times
        spread = 5 / math.sqrt(2 * (part.stop - part.start))
        assert vector[part].std() == pytest.approx(wanted, rel=spread)


def test_distributed_noise_is_too_coarse_for_a_coarse_step() -> None:
    memory = PrototypeMemory(4, exact=True, step=0.5)
    agreed = PrivateRelease(
        GaussianMechanism(1.0, 1.0), StatisticsLayout(memory, [0]), "distributed", contributors=10
    )
    with pytest.raises(PrivacyError, match="'sum': expected at least 16; use a smaller step"):
        agreed.contribution(torch.zeros(1, 4), torch.tensor([0]))


# -- accounting -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("z", "releases", "known"), [(1.0, 1, 4.73), (1.0, 3, 9.01), (4.0, 10, None)]
)
def test_epsilon_is_the_accountants(z: float, releases: int, known: float | None) -> None:
    accountant = RdpAccountant(
        PrivacyConfig(
            target_delta=1e-5,
            population_size=1,
            neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
            sampling_method=SamplingMethod.NO_AMPLIFICATION,
        )
    )
    event = GaussianPrivacyEvent(noise_multiplier=z, sample_size=1, population_size=1)
    accountant.compose(event, releases)
    epsilon = GaussianMechanism(1.0, z).epsilon(1e-5, releases)
    assert epsilon == accountant.get_privacy_spent().epsilon
    assert known is None or round(epsilon, 2) == known


def test_rdp_bound_is_above_the_exact_cost_of_the_gaussian() -> None:
    """The exact delta of one Gaussian release (Balle and Wang 2018, theorem 8) confirms it."""
    from scipy.stats import norm

    z, delta = 1.3, 1e-5
    epsilon = GaussianMechanism(1.0, z).epsilon(delta)
    exact = norm.cdf(1 / (2 * z) - epsilon * z) - math.exp(epsilon) * norm.cdf(
        -1 / (2 * z) - epsilon * z
    )
    assert delta / 10 < exact <= delta


def test_noise_for_a_budget_meets_it() -> None:
    mechanism = GaussianMechanism.for_budget(1.0, epsilon=2.0, delta=1e-5, releases=3)
    assert 1.99 < mechanism.epsilon(1e-5, releases=3) <= 2.0


def test_parts_together_cost_what_is_stated() -> None:
    """Squared sensitivity over variance, summed over the parts, is ``1 / z^2`` or less."""
    for level in LEVELS:
        agreed = release(level, z=0.7)
        square = agreed.mechanism.largest_square(STEP)
        squares = {"count": COUNT_SCALE**2, "sum": square, "second": square**2}
        variances = agreed.mechanism.variances(agreed.layout)
        cost = sum(Fraction(squares[name], variances[name]) for name in agreed.layout.parts)
        assert 0.999 < cost * Fraction(0.7) ** 2 <= 1


def test_budget_counts_releases_of_the_same_samples() -> None:
    mechanism = GaussianMechanism(1.0, 2.0)
    budget = PrivacyBudget(mechanism, epsilon=mechanism.epsilon(1e-5, 2), delta=1e-5)
    assert budget.spent == 0
    assert budget.spend("client 1, experience 0") == mechanism.epsilon(1e-5)
    assert budget.spend("client 2, experience 0") == budget.spent == mechanism.epsilon(1e-5)
    assert budget.spend("client 1, experience 0") == budget.spent == budget.epsilon
    with pytest.raises(PrivacyError, match="release 3 of 'client 1, experience 0' would cost"):
        budget.spend("client 1, experience 0")
    assert budget.spent == budget.epsilon


# -- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["local", "distributed"])
def test_statistics_without_noise_are_not_combined(placement: str) -> None:
    agreed = release(placement=placement, contributors=3)
    plain = release(placement="central").contribution(*sample_batch(5))
    total = PrivateSum(agreed)
    with pytest.raises(PrivacyError, match="a contribution with 0 of the noise"):
        total.add(plain)
    assert total.contributors == 0
    assert not total._total.any()


def test_nothing_is_published_before_the_noise_suffices() -> None:
    agreed = release(placement="distributed", contributors=3)
    total = PrivateSum(agreed)
    for client in range(2):
        total.add(agreed.contribution(*sample_batch(5, seed=client)))
    with pytest.raises(PrivacyError, match="2 contributors give 2/3 of the noise"):
        total.publish()
    total.add(agreed.contribution(*sample_batch(5, seed=3)))
    assert len(total.publish()) == 5


def test_central_noise_is_added_once() -> None:
    """A second answer with fresh noise would tell more; it is the first one again."""
    agreed = release()
    total = PrivateSum(agreed)
    total.add(agreed.contribution(*sample_batch(5)))
    assert_same(total.publish(), total.publish(), "published twice")
    with pytest.raises(PrivacyError, match="has been published"):
        total.add(agreed.contribution(*sample_batch(5)))


def test_sums_that_overflow_are_refused() -> None:
    agreed = release()
    total = PrivateSum(agreed)
    half = NoisyVector(np.full(agreed.layout.size, 2**62), agreed.layout.digest, Fraction(0))
    total.add(half)
    with pytest.raises(OverflowError, match="use a larger step"):
        total.add(half)
    assert total.contributors == 1


def test_other_layouts_and_settings_are_refused() -> None:
    agreed = release()
    with pytest.raises(PrivacyError, match="other classes"):
        PrivateSum(agreed).add(NoisyVector(np.zeros(30, dtype=np.int64), "x", Fraction(1)))
    with pytest.raises(ValueError, match="placement='clients'"):
        release(placement="clients")
    with pytest.raises(ValueError, match="contributors=0"):
        release(contributors=0)
    for clip, z in ((0.0, 1.0), (1.0, 0.0), (1.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="expected a positive number"):
            GaussianMechanism(clip, z)
    with pytest.raises(ValueError, match="epsilon=0"):
        GaussianMechanism.for_budget(1.0, 0.0, 1e-5)


def test_samples_outside_the_public_list_are_left_out() -> None:
    agreed = release()
    features, labels = sample_batch(5)
    labels = torch.where(labels == 3, 555, labels)
    vector = agreed.contribution(features, labels).vector
    counts = vector[agreed.layout.parts["count"]] // COUNT_SCALE
    expected = [int((labels == c).sum()) for c in agreed.layout.classes]
    assert counts.tolist() == expected


# -- what is published ----------------------------------------------------------------------


def test_rare_classes_stay_below_the_threshold() -> None:
    """A class of one sample is published with probability delta: here 1 % of 400 classes."""
    mechanism = GaussianMechanism(2.0, 1.0)
    labels = torch.cat([torch.arange(400), torch.full((60,), 999)])
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(460, 5, generator=generator)
    memory = clipped_memory(PrototypeMemory(5, exact=True), features, labels, mechanism)
    found = release_by_threshold(memory, mechanism, delta=0.01, source=KeyStream(KEY))
    assert 999 in found
    assert len(found) - 1 <= 4 + 5 * math.sqrt(4)
    assert int(found.counts.min()) >= 3
    empty = memory.empty_like()
    assert len(release_by_threshold(empty, mechanism, 1e-5)) == 0
    with pytest.raises(ValueError, match=r"delta=0\.7"):
        release_by_threshold(memory, mechanism, 0.7)


@pytest.mark.parametrize("level", LEVELS)
def test_plausible_statistics_stay_as_they_are(level: str) -> None:
    memory = release(level).layout.empty_memory().update(*sample_batch(5))
    same = make_plausible(memory, clip=100.0)
    assert torch.equal(same.get_buffer("sum"), memory.get_buffer("sum"))
    if level != "mean":
        moved = same.get_buffer("second") - memory.get_buffer("second")
        assert int(moved.abs().max()) < 1e-9 * int(memory.get_buffer("second").abs().max())


@pytest.mark.parametrize(
    ("head", "clip", "least"),
    [
        (NearestMean(), 3.5, 0.85),
        (NearestMean("cosine"), 3.5, 0.85),
        (LinearDiscriminant(), 4.0, 0.85),
        (Mahalanobis(), 4.0, 0.78),
        (Ridge(), 4.0, 0.82),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Head) else "",
)
def test_heads_work_with_noise(head: Head, clip: float, least: float) -> None:
    """Digits over ten clients at epsilon 8: without privacy 0.91 to 0.98, by chance 0.10."""
    data = load_digits(BenchmarkConfig())
    x, y = data.x_train.flatten(1), data.y_train
    mechanism = GaussianMechanism.for_budget(clip, epsilon=8.0, delta=1e-5)
    template = head.new_memory(64, exact=True)
    agreed = PrivateRelease(mechanism, StatisticsLayout(template, range(10)))
    total = PrivateSum(agreed)
    for client in range(10):
        total.add(agreed.contribution(x[client::10], y[client::10]))
    noisy = total.publish(source=KeyStream(KEY))
    accuracy = (head.fit(noisy).predict(data.x_test.flatten(1)) == data.y_test).float().mean()
    assert float(accuracy) > least
