"""Gram matrices of few samples: factors from the matrix alone, and the ridge regression on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from protocl.heads import Ridge
from protocl.heads.covariance import low_rank
from protocl.heads.covariance.low_rank import low_rank_factor
from protocl.heads.regression import spectrum as ridge
from protocl.heads.regression.strength import cross_validation_errors
from protocl.memory.symmetric import pack_triangles

F64 = torch.float64


def features(samples: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, width, generator=generator, dtype=F64)


@pytest.mark.parametrize("samples", [1, 5, 64, 65, 150])
@pytest.mark.parametrize("case", ["plain", "offset", "scales", "dead", "twice"])
def test_the_factor_gives_the_matrix_back_at_its_rank(samples: int, case: str):
    x = features(samples, 200)
    if case == "offset":
        x += 1e3
    elif case == "scales":
        x *= 10.0 ** torch.linspace(-9, 9, 200, dtype=F64)
    elif case == "dead":
        x[:, ::3] = 0.0
    elif case == "twice":
        x[samples // 2 :] = x[: samples - samples // 2].clone()
    gram = x.T @ x
    found = low_rank_factor(gram, samples)
    assert found is not None
    factor, left = found
    assert int((factor != 0).any(0).sum()) == np.linalg.matrix_rank(
        x.numpy() / x.norm(dim=0).clamp(min=1e-30).numpy()
    )
    sizes = gram.diagonal().sqrt()
    error = (factor @ factor.T - gram).abs()
    assert bool((error <= 1e-12 * sizes[:, None] * sizes).all())
    assert float(error.norm()) <= 10 * float(left) + 1e-13 * float(gram.norm())


@pytest.mark.parametrize("noise", [1e-9, 1e-3, 10.0])
@pytest.mark.parametrize("where", ["diagonal", "elsewhere", "lowered"])
def test_statistics_that_were_changed_are_told_from_sums_of_samples(noise: float, where: str):
    x = features(20, 100)
    gram = x.T @ x
    if where == "diagonal":
        gram += noise * torch.eye(100, dtype=F64)
    elif where == "lowered":
        gram -= noise * torch.eye(100, dtype=F64)
    else:
        change = noise * features(100, 100, 1)
        gram += (change + change.T).fill_diagonal_(0.0)
    assert low_rank_factor(gram, 20) is None


def test_a_matrix_of_zeros_has_no_factor():
    assert low_rank_factor(torch.zeros(8, 8, dtype=F64), 3) is None


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    images = torch.from_numpy(data.data / 16).float()
    return images, torch.from_numpy(data.target)


@pytest.mark.parametrize("regularization", ["auto", 1.0])
@pytest.mark.parametrize("samples", [1, 30, 270])
def test_ridge_on_few_samples_answers_as_by_the_whole_decomposition(
    digits, samples: int, regularization, monkeypatch: pytest.MonkeyPatch
):
    x, y = digits
    head = Ridge(700, regularization=regularization)
    memory = head.new_memory(64).update(x[:samples], y[:samples])
    head.fit(memory)
    assert len(ridge.decompose(memory).values) == samples
    monkeypatch.setattr(low_rank, "FEW", 0.0)
    monkeypatch.setattr(ridge, "FEW", 1e9)  # nor is it solved by Cholesky
    whole = Ridge(700, regularization=head.chosen).fit(memory)
    assert len(ridge.decompose(memory).values) == 700
    logits, expected = head(x), whole(x)
    assert float((logits - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert torch.equal(head.predict(x), whole.predict(x))


@pytest.mark.parametrize("samples", [30, 270])
def test_scores_of_cross_validation_are_those_of_the_samples(digits, samples: int):
    """Golub, Heath and Wahba's score from a singular value decomposition of the samples."""
    x, y = digits[0][:samples], digits[1][:samples]
    head = Ridge(700, dtype=F64)
    spectrum = ridge.decompose(head.new_memory(64).update(x, y))
    hidden = head.feature_map(64)(x).double()
    u, s, _ = torch.linalg.svd(hidden, full_matrices=False)
    targets = torch.nn.functional.one_hot(y).double()
    for strength, score in zip(ridge.GRID, cross_validation_errors(spectrum), strict=True):
        left = strength / (s.square() + strength)
        residual = ((left[:, None] * (u.T @ targets)) ** 2).sum() / samples
        free = float(left.sum()) / samples
        if free > 1e-6:
            assert float(score) == pytest.approx(float(residual) / free**2, rel=1e-5)
        else:
            assert float(score) == float("inf")


def test_statistics_with_noise_are_decomposed_as_before():
    x, y = features(20, 90), torch.arange(20) % 4
    head = Ridge(regularization=1.0)
    memory = head.new_memory(90).update(x, y)
    change = features(90, 90, 1) / 10
    memory.second += pack_triangles(change + change.T)
    memory._touch()
    spectrum = ridge.decompose(memory)
    assert len(spectrum.values) == 90
    assert float(spectrum.error) > 0.1


@pytest.mark.parametrize("strength", [1e-8, 1e-2, 1.0, 1e4])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
@pytest.mark.parametrize("flat", [False, True])
def test_a_given_strength_takes_no_eigenvalues_and_gives_the_same(
    strength: float, offset: float, flat: bool
):
    x, y = features(300, 40) + offset, torch.arange(300) % 5
    x[:, 1] = 2 * x[:, 0] if flat else x[:, 1]
    memory = Ridge().new_memory(40).update(x, y)
    weights, reach = ridge.solve(memory, strength)
    spectrum = ridge.decompose(memory)
    expected = spectrum.weights(strength)
    # What one sum of squares resolves; beyond, the eigenvalues are used as well.
    tolerance = 1e-14 * float(spectrum.values[-1]) / strength + 1e-8
    assert float((weights - expected).norm()) <= tolerance * float(expected.norm())
    torch.testing.assert_close(reach, spectrum.reach(strength), rtol=tolerance, atol=tolerance)


def test_eigenvalues_below_zero_are_taken_for_zero_with_a_given_strength():
    x, y = features(300, 40), torch.arange(300) % 5
    memory = Ridge().new_memory(40).update(x, y)
    memory.second -= 300 * pack_triangles(torch.eye(40, dtype=F64))
    memory._touch()
    spectrum = ridge.decompose(memory)
    assert float(spectrum.error) > 50
    assert torch.equal(ridge.solve(memory, 200.0)[0], spectrum.weights(200.0))
