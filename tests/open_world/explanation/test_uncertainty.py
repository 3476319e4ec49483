"""Uncertainties of answers: the authors' numbers, and what they say of few and many samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from protocl.heads import BayesianPrototypes
from protocl.memory import PrototypeMemory
from protocl.open_world.explanation.uncertainty import (
    drawn_probabilities,
    share_closer,
    uncertainty,
)
from tests.golden.discovery import drawn, golden, same

GOLDEN = golden()["prob_psenn"]


def test_uncertainties_are_those_of_the_authors():
    rng = np.random.default_rng(701)
    mean = drawn(GOLDEN, "mean", 2 * rng.standard_normal((4, 5)))
    root = 0.3 * rng.standard_normal((4, 5, 5))
    cov = drawn(GOLDEN, "cov", root @ root.transpose(0, 2, 1) + 0.1 * np.eye(5))
    near = mean.numpy() + 0.2 * rng.standard_normal((4, 5))
    z = drawn(GOLDEN, "z", np.concatenate([near, 6 * rng.standard_normal((2, 5))]))
    noise = torch.from_numpy(rng.standard_normal((50, 4, 5)))
    draws = mean + (torch.linalg.cholesky(cov) @ noise[..., None])[..., 0]
    distances = (z[:, None, None] - draws).square().sum(-1)
    probabilities = (-distances / 2).softmax(-1)
    same(probabilities.mean(1), GOLDEN["mean_probabilities"])
    found = uncertainty(probabilities)
    same(found.total, GOLDEN["total_entropy"])
    same(found.aleatoric, GOLDEN["aleatoric"])
    same(found.epistemic, GOLDEN["epistemic"])
    own = {k: torch.from_numpy(rng.chisquare(5, 40)) for k in range(4)}
    to_nearest, nearest = distances.mean(1).min(1)
    same(share_closer(to_nearest, nearest, own), GOLDEN["explanation_epistemic_by_distance"])


@pytest.mark.parametrize("covariance", ["iso", "diag", "full"])
def test_samples_take_away_what_is_epistemic_and_nothing_else(covariance):
    rng = torch.Generator().manual_seed(0)
    means = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    asked = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    head = BayesianPrototypes(covariance=covariance, noise=_noise(covariance))
    found = []
    for each in (2, 2000):
        labels = torch.arange(3).repeat(each)
        x = means[labels] + torch.randn(len(labels), 2, generator=rng)
        memory = head.new_memory(2).update(x, labels)
        answers = drawn_probabilities(head, memory, asked)
        found.append(uncertainty(answers))
        torch.testing.assert_close(answers.sum(2), torch.ones(2, 50).double())
    few, many = found
    assert (few.epistemic > 5 * many.epistemic).all()
    # Between two classes it stays unclear which it is.
    assert many.aleatoric[0] > many.aleatoric[1]
    direct = head.fit(memory).probabilities(asked)
    torch.testing.assert_close(answers.mean(1).float(), direct, atol=2e-2, rtol=0)


def _noise(covariance: str):
    return {"iso": 1.0, "diag": torch.ones(2), "full": torch.eye(2)}[covariance]


def test_equal_seeds_draw_alike_and_what_does_not_fit_is_refused():
    memory = PrototypeMemory(2, "diagonal").update(torch.eye(2).repeat(2, 1), torch.arange(4) % 2)
    head = BayesianPrototypes(noise=1.0)
    first, again, other = (
        drawn_probabilities(head, memory, torch.eye(2), seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert drawn_probabilities(head, memory, torch.zeros(0, 2), draws=3).shape == (0, 3, 2)
    with pytest.raises(ValueError, match="draws=0"):
        drawn_probabilities(head, memory, torch.eye(2), draws=0)
    with pytest.raises(KeyError):
        share_closer(torch.ones(1), torch.tensor([3]), {})


def test_a_sure_answer_has_no_uncertainty_and_never_less():
    rng = torch.Generator().manual_seed(0)
    torn = torch.randn(50, 20, 4, generator=rng, dtype=torch.float64).mul(20).softmax(-1)
    sure = torch.eye(4, dtype=torch.float64)[None, :1].expand(1, 20, 4)
    found = uncertainty(torch.cat([sure, torn]))
    assert [f"{float(part[0]):.3f}" for part in found] == ["0.000"] * 3
    assert all((part >= 0).all() for part in found)
