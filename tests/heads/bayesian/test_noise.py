"""Noise and prior that Bayesian prototypes estimate, by hand."""

from __future__ import annotations

import pytest
import torch

from protocl import PrototypeMemory
from protocl.heads.bayesian.noise import estimate_noise, estimate_prior

F64 = torch.float64


def memory_of(counts: tuple[int, ...], level: str = "full") -> tuple[PrototypeMemory, list]:
    generator = torch.Generator().manual_seed(3)
    classes = [
        3 * torch.randn(3, generator=generator, dtype=F64)
        + torch.randn(count, 3, generator=generator, dtype=F64)
        for count in counts
    ]
    memory = PrototypeMemory(3, level)
    for label, samples in enumerate(classes):
        memory.update(samples, torch.full((len(samples),), label))
    return memory, classes


def test_noise_is_divided_by_samples_less_classes():
    memory, classes = memory_of((2, 3, 4))
    scatter = sum((x - x.mean(0)).square().sum(0) for x in classes)
    torch.testing.assert_close(estimate_noise(memory, "diag"), scatter / (9 - 3))
    torch.testing.assert_close(estimate_noise(memory, "iso"), (scatter / (9 - 3)).mean())
    full = estimate_noise(memory, "full")
    torch.testing.assert_close(full.diagonal().mean(), (scatter / 6).mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("counts", [(2, 3, 4), (30, 1, 2, 8)])
def test_the_prior_is_as_wide_as_the_means_less_what_noise_spreads_them(counts):
    memory, classes = memory_of(counts)
    means = torch.stack([x.mean(0) for x in classes])
    noise = torch.tensor(0.6, dtype=F64)
    sampling = sum(0.6 / count for count in counts) / len(counts)
    between = float(((means - means.mean(0)) ** 2).sum() / (len(counts) - 1) / 3) - sampling
    prior = estimate_prior(memory, noise)
    torch.testing.assert_close(prior.mean, means.mean(0))
    assert float(prior.precision) == pytest.approx(1 / between, rel=1e-9)
    assert float(prior.precision) > 0


def test_a_prior_of_one_class_is_as_wide_as_the_noise():
    memory, classes = memory_of((5,))
    prior = estimate_prior(memory, torch.tensor([1.0, 2.0, 3.0], dtype=F64))
    torch.testing.assert_close(prior.mean, classes[0].mean(0))
    assert float(prior.precision) == pytest.approx(0.5)


def test_noise_that_would_be_none_is_a_millionth_of_the_spread_of_the_means():
    features = torch.tensor([[0.0, 5.0], [2.0, 5.0]], dtype=F64).repeat(3, 1)
    memory = PrototypeMemory(2, "full").update(features, torch.arange(6) % 2)
    with pytest.warns(UserWarning, match="no class has samples that differ"):
        assert float(estimate_noise(memory, "iso")) == pytest.approx(1e-6 * 0.5)
    memory.update(features + torch.tensor([0.0, 1.0]), torch.arange(6) % 2)
    found = estimate_noise(memory, "diag")
    torch.testing.assert_close(found, torch.tensor([0.5e-6, 0.3], dtype=F64))
