"""Directions that hardly vary, far from the origin, and features of any size: right, or said."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeCV

from protocl.errors import PrecisionWarning
from protocl.heads import BayesianPrototypes, LinearDiscriminant, Mahalanobis, NearestMean, Ridge
from protocl.heads.regression.spectrum import GRID, grid_for

F64 = torch.float64
KNOWN = 300
PLAIN = {"tukey": None, "normalize": False, "dtype": F64}
BARE = {**PLAIN, "correlation": False}

HEADS = {
    "euclidean": lambda: NearestMean(dtype=F64),
    "lda": lambda: LinearDiscriminant(dtype=F64),
    "lda without shrinkage": lambda: LinearDiscriminant(0.0, dtype=F64),
    "lda scaled": lambda: LinearDiscriminant(1e-6, target="scaled", dtype=F64),
    "lda auto": lambda: LinearDiscriminant("auto", dtype=F64),
    "correlations": lambda: Mahalanobis(**PLAIN),
    "bare correlations": lambda: Mahalanobis(None, **PLAIN),
    "bare covariances": lambda: Mahalanobis(None, **BARE),
    "low rank": lambda: Mahalanobis(covariance="low_rank", rank=2, **PLAIN),
    "shared": lambda: Mahalanobis(covariance="shared", **BARE),
    "bare shared": lambda: Mahalanobis(None, covariance="shared", **BARE),
    "bayesian iso": lambda: BayesianPrototypes(dtype=F64),
    "bayesian diag": lambda: BayesianPrototypes(covariance="diag", dtype=F64),
    "bayesian full": lambda: BayesianPrototypes(covariance="full", dtype=F64),
}
LOSABLE = ("lda without shrinkage", "bare correlations", "bare covariances", "bare shared")
every_head = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)


def squeezed(seed, condition, samples=KNOWN + 200, width=8):
    """Five classes whose directions have standard deviations from 1 down to ``1 / condition``."""
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=F64))
    spread = torch.logspace(0, -torch.tensor(float(condition)).log10().item(), width, dtype=F64)
    labels = torch.arange(samples) % 5
    centres = torch.randn(5, width, generator=generator, dtype=F64)
    noise = torch.randn(samples, width, generator=generator, dtype=F64)
    return ((centres[labels] + noise) * spread) @ turn.T, labels


def answered(make, features, labels):
    """Answers for the samples behind the first, and whether the fit warned of its precision."""
    head = make()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        head.fit(head.new_memory(features.shape[1]).update(features[:KNOWN], labels[:KNOWN]))
    warned = any(issubclass(warning.category, PrecisionWarning) for warning in said)
    return head.predict(features[KNOWN:]), warned


def moved(features, ratio):
    return features + ratio * features.std(0)


@every_head
@given(
    condition=st.sampled_from([1.0, 10.0, 1e2, 1e3, 1e4, 1e6]),
    ratio=st.sampled_from([1.0, 1e2, 1e3, 1e4, 9e4]),
    seed=st.integers(0, 30),
)
@settings(max_examples=6, deadline=None)
def test_an_offset_changes_no_answer_or_the_fit_warns(make, condition, ratio, seed):
    features, labels = squeezed(seed, condition)
    expected, _ = answered(make, features, labels)
    found, far = answered(make, moved(features, ratio), labels)
    assert far or (found != expected).sum() <= 1  # one that lies between two classes


@pytest.mark.parametrize("name", LOSABLE)
def test_lost_directions_are_said_before_a_feature_is_lost(name):
    features, labels = squeezed(0, 1e4)
    expected, near = answered(HEADS[name], features, labels)
    found, far = answered(HEADS[name], moved(features, 1e4), labels)
    assert (found != expected).double().mean() > 0.01
    assert far
    assert not near


RIDGES = {"ridge": lambda: Ridge(dtype=F64), "ranpac": lambda: Ridge(100, dtype=F64)}


@pytest.mark.parametrize("make", (HEADS | RIDGES).values(), ids=HEADS | RIDGES)
def test_nothing_is_said_of_digits(make):
    """Pixels that never vary, and such as follow from others, lose nothing."""
    data = load_digits()
    features, labels = (torch.from_numpy(part[: KNOWN + 1]) for part in (data.data, data.target))
    for scaled in (features, features / 16, features.float() / 10):
        assert not answered(make, scaled, labels)[1]


def test_shrinkage_that_covers_the_loss_silences_the_warning():
    features, labels = squeezed(0, 1e4)
    for name in ("lda auto", "shared", "correlations", "bayesian full"):
        expected, _ = answered(HEADS[name], features, labels)
        found, far = answered(HEADS[name], moved(features, 1e4), labels)
        assert torch.equal(found, expected)
        assert not far


# -- ridge regression ---------------------------------------------------------------------------


def by_singular_values(features, labels, strength):
    """Predictions of ridge regression without a Gram matrix, which squares the condition."""
    left, values, right = torch.linalg.svd(features[:KNOWN], full_matrices=False)
    targets = torch.nn.functional.one_hot(labels[:KNOWN]).double()
    shrunk = (values / (values.square() + strength))[:, None]
    return features[KNOWN:] @ (right.T @ (shrunk * (left.T @ targets)))


@given(
    condition=st.sampled_from([1.0, 1e2, 1e4]),
    ratio=st.sampled_from([0.0, 1e2, 1e3, 1e4, 9e4]),
    strength=st.sampled_from([1e-8, 1e-3, 1.0]),
    seed=st.integers(0, 30),
)
@settings(max_examples=25, deadline=None)
def test_regression_far_from_the_origin_is_right_or_warns(condition, ratio, strength, seed):
    features, labels = squeezed(seed, condition)
    features = moved(features, ratio)
    found, warned = answered(lambda: Ridge(regularization=strength, dtype=F64), features, labels)
    expected = by_singular_values(features, labels, strength).argmax(1)
    assert warned or (found != expected).double().mean() <= 0.01


def test_regression_on_lost_directions_warns():
    features, labels = squeezed(0, 1e4)
    make = lambda: Ridge(regularization=1e-8, dtype=F64)  # noqa: E731
    assert not answered(make, features, labels)[1]
    assert answered(make, moved(features, 1e4), labels)[1]


# -- units --------------------------------------------------------------------------------------


# The constant of the published LDA has a unit; what is said of it is tested below.
@pytest.mark.parametrize("make", [make for name, make in HEADS.items() if name != "lda"])
@given(power=st.integers(-12, 12), seed=st.integers(0, 30))
@settings(max_examples=6, deadline=None)
def test_the_unit_changes_no_answer_or_the_fit_warns(make, power, seed):
    features, labels = squeezed(seed, 10.0)
    expected, _ = answered(make, features, labels)
    found, warned = answered(make, features * 10.0**power, labels)
    assert warned or torch.equal(found, expected)


@pytest.mark.parametrize("projection", [None, 100])
@pytest.mark.parametrize("power", [-12, -9, -6, -3, 3, 6, 9, 15])
def test_the_strength_that_regression_chooses_follows_the_unit(projection, power):
    features, labels = squeezed(3, 10.0)
    make = lambda: Ridge(projection, dtype=F64)  # noqa: E731
    expected, _ = answered(make, features, labels)
    found, _ = answered(make, features * 10.0**power, labels)
    assert (found == expected).double().mean() >= 0.98


def test_a_moved_grid_chooses_as_scikit_learn_does_on_it():
    features, labels = (part[:200] for part in squeezed(1, 30.0))
    features = features * 1e-9
    grid = grid_for(float(features.var(0).mean()))
    one_hot = torch.nn.functional.one_hot(labels).double()
    peer = RidgeCV(alphas=grid, fit_intercept=False).fit(features.numpy(), one_hot.numpy())
    head = Ridge(dtype=F64)
    head.fit(head.new_memory(8).update(features, labels))
    expected = peer.predict(features.numpy()).argmax(1)
    assert (head.predict(features).numpy() == expected).mean() >= 0.98


def test_the_published_grid_holds_for_features_of_ordinary_size():
    assert grid_for(0.0) == grid_for(1e-6) == grid_for(1.0) == grid_for(1e6) == GRID
    assert grid_for(1e-24) == pytest.approx([strength * 1e-24 for strength in GRID], rel=1e-12)
    assert grid_for(1e30) == pytest.approx([strength * 1e30 for strength in GRID], rel=1e-12)


@pytest.mark.parametrize("streaming", [False, True])
def test_shrinkage_in_another_unit_than_the_features_says_so_and_what_has_none(streaming):
    features, labels = squeezed(2, 10.0)
    peer = LinearDiscriminantAnalysis(priors=[0.2] * 5)
    peer.fit(features[:KNOWN].numpy(), labels[:KNOWN].numpy())
    expected = torch.from_numpy(peer.predict(features[KNOWN:].numpy()))
    small = features * 1e-6
    head = LinearDiscriminant(streaming=streaming)
    memory = head.new_memory(8).update(small[:KNOWN], labels[:KNOWN])
    with pytest.warns(PrecisionWarning, match=r"shrinkage=0.0001.*'scaled'.*'auto'"):
        head.fit(memory)
    assert (head.predict(small[KNOWN:]) != expected).double().mean() > 0.1
    free, warned = answered(
        lambda: LinearDiscriminant(target="scaled", streaming=streaming), small, labels
    )
    assert (free != expected).double().mean() < 0.03
    assert not warned


def test_a_shrinkage_of_one_is_meant_and_passes_in_silence():
    features, labels = squeezed(2, 10.0)
    assert not answered(lambda: LinearDiscriminant(1.0), features * 1e-6, labels)[1]
