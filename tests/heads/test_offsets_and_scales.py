"""Heads far from the origin, in other units, and without any scatter, against scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.neighbors import NearestCentroid

from protocl import PrototypeMemory
from protocl.errors import PrecisionWarning
from protocl.heads import BayesianPrototypes, LinearDiscriminant, Mahalanobis, NearestMean, Ridge

F64 = torch.float64
PLAIN = {"tukey": None, "normalize": False}

MOVABLE = {
    "euclidean": (NearestMean, 2),
    "lda": (lambda **k: LinearDiscriminant(0.1, target="scaled", **k), 0),
    "lda auto": (lambda **k: LinearDiscriminant("auto", priors="empirical", **k), 0),
    "lda without shrinkage": (lambda **k: LinearDiscriminant(0.0, **k), 0),
    "correlations": (lambda **k: Mahalanobis(**PLAIN, **k), 2),
    "covariances": (lambda **k: Mahalanobis(**PLAIN, correlation=False, **k), 0),
    "low rank": (lambda **k: Mahalanobis(**PLAIN, covariance="low_rank", rank=2, **k), 2),
    "shared": (
        lambda **k: Mahalanobis(**PLAIN, correlation=False, covariance="shared", **k),
        0,
    ),
    "bayesian iso": (BayesianPrototypes, 0),
    "bayesian diag": (lambda **k: BayesianPrototypes(covariance="diag", **k), 0),
    "bayesian full": (lambda **k: BayesianPrototypes(covariance="full", **k), 0),
}
"""Heads that look at differences alone, and the power of the unit that their logits have."""

movable = pytest.mark.parametrize(("make", "power"), MOVABLE.values(), ids=MOVABLE)
pytestmark = pytest.mark.filterwarnings("ignore::protocl.errors.PrecisionWarning")


def clusters(seed: int = 0, per_class: int = 12, dim: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(4 * per_class) % 4
    centres = 3 * torch.randn(4, dim, generator=generator, dtype=F64)
    mixing = torch.eye(dim, dtype=F64) + torch.rand(dim, dim, generator=generator, dtype=F64) / 3
    noise = torch.randn(len(labels), dim, generator=generator, dtype=F64)
    return centres[labels] + noise @ mixing, labels


def logits_of(make, features, labels, queries):
    head = make()
    head.fit(head.new_memory(features.shape[1]).update(features, labels))
    return around_their_mean(head(queries).double())


def around_their_mean(logits):
    return logits - logits.mean(1, keepdim=True)


# -- digits, as scikit-learn answers ----------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return torch.from_numpy(data.data), torch.from_numpy(data.target)


PEERS = {
    "lda": (
        lambda: LinearDiscriminant(0.1, target="scaled", priors="empirical"),
        lambda: LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1),
    ),
    "lda without shrinkage": (
        lambda: LinearDiscriminant(0.0, priors="empirical"),
        lambda: LinearDiscriminantAnalysis(solver="lsqr"),
    ),
    "nearest mean": (NearestMean, NearestCentroid),
}


@pytest.mark.parametrize(("make", "peer"), PEERS.values(), ids=PEERS)
@pytest.mark.parametrize("offset", [0.0, 100.0, 1000.0, 1e4])
@pytest.mark.parametrize("where", [slice(None), slice(20, 21)], ids=["all", "one feature"])
def test_digits_far_from_the_origin_are_answered_as_by_scikit_learn(
    digits, make, peer, offset, where
):
    features, labels = digits[0].clone(), digits[1]
    features[:, where] += offset
    known = torch.arange(len(labels)) % 2 == 0
    expected = peer().fit(digits[0][known].numpy(), labels[known].numpy())
    head = make()
    head.fit(head.new_memory(64).update(features[known], labels[known]))
    found = head.predict(features[~known])
    agree = (found.numpy() == expected.predict(digits[0][~known].numpy())).mean()
    assert agree >= 0.998  # a tie may fall either way


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
def test_ridge_far_from_the_origin_is_scikit_learns(offset):
    features, labels = clusters()
    features = features + offset
    one_hot = np.eye(4)[labels.numpy()]
    peer = SklearnRidge(alpha=1.0, fit_intercept=False, solver="cholesky")
    expected = peer.fit(features.numpy(), one_hot).predict(features.numpy())
    head = Ridge(regularization=1.0)
    found = head.fit(head.new_memory(5).update(features, labels))(features)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


def test_cosines_far_from_the_origin_say_so_and_are_right_in_float64(digits):
    features, labels = digits[0] + 1e5, digits[1]
    expected = torch.stack([features[labels == c].mean(0) for c in range(10)])
    unit = torch.nn.functional.normalize
    exact = unit(features - 0, dim=1) @ unit(expected, dim=1).T
    memory = NearestMean("cosine").new_memory(64).update(features, labels)
    with pytest.warns(PrecisionWarning, match=r"subtract the mean.*dtype=torch.float64"):
        NearestMean("cosine").fit(memory)
    found = NearestMean("cosine", dtype=F64).fit(memory)
    assert (found.predict(features) == exact.argmax(1)).double().mean() > 0.99


# -- laws -------------------------------------------------------------------------------------


@movable
@given(
    exponent=st.integers(0, 4),
    one=st.booleans(),
    seed=st.integers(0, 20),
    dtype=st.sampled_from([torch.float32, F64]),
)
@settings(max_examples=6, deadline=None)
def test_an_offset_changes_nothing(make, power, exponent, one, seed, dtype):
    features, labels = clusters(seed)
    deviation = float((features - features.mean(0)).std())
    offset = torch.zeros(5, dtype=F64)
    offset[2 if one else slice(None)] = deviation * 10.0**exponent
    near = logits_of(lambda: make(dtype=F64), features, labels, features)
    far = logits_of(lambda: make(dtype=dtype), features + offset, labels, features + offset)
    torch.testing.assert_close(far, near, rtol=1e-3, atol=1e-4 * float(near.abs().max()))


@movable
def test_at_100_000_deviations_the_bound_holds(make, power):
    features, labels = clusters()
    near = logits_of(lambda: make(dtype=F64), features, labels, features)
    far = logits_of(make, features + 2e5, labels, features + 2e5)
    torch.testing.assert_close(far, near, rtol=1e-2, atol=1e-2 * float(near.abs().max()))


@movable
@given(exponent=st.integers(-12, 12), seed=st.integers(0, 20), per_class=st.sampled_from([1, 2, 9]))
@settings(max_examples=6, deadline=None)
def test_the_unit_of_the_features_changes_nothing(make, power, exponent, seed, per_class):
    if per_class == 2 and make is MOVABLE["lda without shrinkage"][0]:
        per_class = 9  # fewer samples than features have no covariance that could be inverted
    features, labels = clusters(seed, per_class)
    scale = 10.0**exponent
    expected = logits_of(lambda: make(dtype=F64), features, labels, features)
    found = logits_of(make, features * scale, labels, features * scale)
    if per_class == 1:  # without scatter the unit of a distance is free
        assert found.argmax(1).tolist() == expected.argmax(1).tolist()
        return
    torch.testing.assert_close(
        found / scale**power, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
    )


ALL = {name: make for name, (make, _) in MOVABLE.items()} | {
    "lda to the identity": LinearDiscriminant,
    "lda half way": lambda **k: LinearDiscriminant(0.3, target="scaled", **k),
    "lda of unit vectors": lambda **k: LinearDiscriminant("auto", normalize_input=True, **k),
    "fecam": Mahalanobis,
    "fecam without shrinkage": lambda **k: Mahalanobis(None, correlation=False, **k),
}


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("copies", [1, 7])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_without_scatter_the_nearest_mean_wins(make, copies, scale):
    """One sample a class, or many that are alike, whose scatter is what rounding leaves."""
    generator = torch.Generator().manual_seed(5)
    points = scale * torch.rand(6, 8, generator=generator, dtype=F64)
    features, labels = points.repeat(copies, 1), torch.arange(6).repeat(copies)
    head = make()
    head.fit(head.new_memory(8).update(features, labels))
    queries = points + scale * 0.05 * torch.rand(6, 8, generator=generator, dtype=F64)
    assert head.predict(queries).tolist() == list(range(6))


@pytest.mark.parametrize("make", [make for name, make in ALL.items() if name != "euclidean"])
def test_a_want_of_scatter_is_said(make):
    head = make()
    memory = head.new_memory(8).update(torch.rand(6, 8) + torch.eye(8)[:6], torch.arange(6))
    with pytest.warns(PrecisionWarning, match=r"no class has samples that differ.*Euclidean"):
        head.fit(memory)


# -- warnings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["diagonal", "shared", "full"])
def test_a_feature_whose_scatter_is_lost_is_named_with_its_ratio(level):
    features, labels = clusters(per_class=50)
    features[:, 3] = 1e6 + 0.5 * features[:, 3] / features[:, 3].std()
    head = BayesianPrototypes() if level == "diagonal" else LinearDiscriminant()
    memory = head.new_memory(5, level=level).update(features, labels)
    with pytest.warns(PrecisionWarning, match=r"1 of 5 features.*feature 3 \([0-9]e\+06\)"):
        head.fit(memory)


def test_features_whose_squares_are_all_alike_are_named_as_they_are_added():
    features, labels = clusters(per_class=50)
    features[:, 3] = 1e6 + 1e-3 * features[:, 0]
    for level in ("diagonal", "shared", "full"):
        with pytest.warns(PrecisionWarning, match=r"feature 3 varies by 1e-0[89] of its size"):
            PrototypeMemory(5, level).update(features, labels)


def test_nothing_is_said_of_constant_and_of_ordinary_features():
    features, labels = clusters()
    constant = torch.cat([features + 100, torch.zeros(48, 1), torch.full((48, 1), 7.0)], dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make, _ in MOVABLE.values():
            head = make()
            head.fit(head.new_memory(7).update(constant, labels))


def test_scatter_that_is_rounding_is_zero():
    points = torch.rand(3, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    features, labels = points.repeat(500, 1), torch.arange(3).repeat(500)
    for level in ("diagonal", "shared", "full"):
        assert not PrototypeMemory(4, level).update(features, labels).scatter().any(), level


CONSTANTS = (0.1, 1e-3, 1 / 3, 100.3, 1e5 + 0.7)


@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("samples", [12, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_nothing_is_said_of_constants_whose_squares_are_rounded(constant, samples, dtype):
    features, labels = clusters(per_class=samples)
    features = torch.cat([features, torch.full((4 * samples, 1), constant, dtype=F64)], dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for head in (BayesianPrototypes(), LinearDiscriminant(0.0), Ridge(regularization=1.0)):
            memory = head.new_memory(6)
            for part in range(3):
                memory.update(features[part::3].to(dtype), labels[part::3])
            head.fit(memory)


@pytest.mark.parametrize("ratio", [3e5, 1e6])
def test_a_feature_that_many_samples_hide_is_not_taken_for_a_constant(ratio):
    features, labels = clusters(per_class=25000)
    features[:, 3] = 1 + (features[:, 3] - features[:, 3].mean()) / features[:, 3].std() / ratio
    memory = PrototypeMemory(5, "diagonal").update(features, labels)
    with pytest.warns(PrecisionWarning, match="1 of 5 features.*feature 3"):
        BayesianPrototypes().fit(memory)
