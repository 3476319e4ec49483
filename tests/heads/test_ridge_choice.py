"""The strength that ridge regression chooses for itself."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeCV

from protocl.heads import Ridge
from protocl.heads.regression.spectrum import GRID, decompose
from protocl.heads.regression.strength import NEAR, cross_validation_errors
from protocl.memory.symmetric import pack_triangles

F64 = torch.float64


def accuracy(head, features, labels):
    return float((head.predict(features) == labels).double().mean())


@pytest.mark.parametrize("seed", range(3))
def test_one_sample_a_class_does_not_choose_the_end_of_the_grid(seed):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, 64, generator=generator)
    labels = torch.arange(20).repeat(30)
    features = centres[labels] + torch.randn(600, 64, generator=generator) / 2
    head = Ridge(1000)
    head.fit(head.new_memory(64).update(features[:20], labels[:20]))
    best = Ridge(1000, regularization=1.0).fit(
        head.new_memory(64).update(features[:20], labels[:20])
    )
    assert head.chosen < GRID[-1]
    assert accuracy(head, features, labels) >= accuracy(best, features, labels) - 0.01


def test_the_least_strength_of_like_score_is_taken():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(20)
    features = torch.randn(20, 64, generator=generator)
    head = Ridge(500, dtype=F64)
    memory = head.new_memory(64).update(features, labels)
    errors = cross_validation_errors(decompose(memory))
    like = [s for s, error in zip(GRID, errors, strict=True) if error <= (1 + NEAR) * min(errors)]
    assert head.fit(memory).chosen == min(like) < GRID[int(errors.argmin())]


def test_scores_of_cross_validation_are_those_of_scikit_learn():
    """With as many strengths and one target, its leave-one-out choice is next to ours."""
    data = load_digits()
    features, labels = torch.from_numpy(data.data / 16)[:400], torch.from_numpy(data.target)[:400]
    one_hot = torch.nn.functional.one_hot(labels).double()
    peer = RidgeCV(alphas=GRID, fit_intercept=False).fit(features.numpy(), one_hot.numpy())
    memory = Ridge().new_memory(64).update(features, labels)
    errors = cross_validation_errors(decompose(memory))
    assert abs(int(errors.argmin()) - GRID.index(peer.alpha_)) <= 1


def test_a_held_out_memory_counts_whatever_was_fitted_before():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(60, 8, generator=generator), torch.arange(60) % 3
    memory = Ridge().new_memory(8).update(features, labels)
    parts = [Ridge().new_memory(8).update(features[i::6], labels[i::6]) for i in range(2)]
    expected = [Ridge().fit(memory, heldout=part).chosen for part in parts]
    alone = Ridge().fit(memory).chosen
    head = Ridge()
    found = [head.fit(memory, heldout=part).chosen for part in (None, *parts, None)]
    assert found == [alone, *expected, alone]
    weights = head._weights
    assert head.fit(memory)._weights is weights
    fixed = Ridge(regularization=2.0).fit(memory)
    before = fixed._weights
    assert fixed.fit(memory, heldout=parts[0])._weights is before


@pytest.mark.parametrize("error", [1e-3, 0.5, 20.0])
def test_no_strength_below_the_error_of_the_statistics_is_chosen(error):
    """Sums that were rounded on their way have negative eigenvalues, which no samples have."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(200) % 4
    features = torch.randn(4, 6, generator=generator)[labels] + torch.randn(
        200, 6, generator=generator
    )
    features = torch.cat([features, features[:, :1]], dim=1)  # one direction without variance
    memory = Ridge().new_memory(7).update(features, labels)
    assert Ridge().fit(memory).chosen < error
    memory.second -= error * pack_triangles(torch.eye(7, dtype=F64))
    memory._touch()
    part = Ridge().new_memory(7).update(features[::5], labels[::5])
    assert Ridge().fit(memory).chosen >= error * 0.999
    assert Ridge().fit(memory, heldout=part).chosen >= error * 0.999


def test_a_twin_keeps_the_strength_that_was_chosen():
    """Its scores would have another scale, and a calibration would not hold for them."""
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(200, 8, generator=generator), torch.arange(200) % 4
    apart = features / 9 + torch.eye(8)[labels]
    memory, few = (Ridge().new_memory(8).update(x, labels) for x in (apart, features))
    head = Ridge().fit(memory)
    assert Ridge().fit(few).chosen != head.chosen
    assert head.twin().fit(few).chosen == head.chosen
