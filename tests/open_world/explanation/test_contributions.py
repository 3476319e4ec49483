"""Terms of a decision: they add up to it exactly, for every head of first or second degree."""

from __future__ import annotations

import pytest
import torch

from protocl.heads import (
    BayesianPrototypes,
    LinearDiscriminant,
    Mahalanobis,
    NearestMean,
    Ridge,
)
from protocl.open_world.explanation.contributions import contributions

FORMS = [
    NearestMean(dtype=torch.float64),
    NearestMean(normalize_mean=True, dtype=torch.float64),
    LinearDiscriminant(0.1, dtype=torch.float64),
    LinearDiscriminant(0.1, priors="empirical", dtype=torch.float64),
    Mahalanobis(normalize=False, tukey=None, dtype=torch.float64),
    Mahalanobis(normalize=False, tukey=None, covariance="shared", dtype=torch.float64),
    Mahalanobis(normalize=False, tukey=None, covariance="low_rank", rank=2, dtype=torch.float64),
    Ridge(dtype=torch.float64),
    BayesianPrototypes(covariance="full", dtype=torch.float64),
    LinearDiscriminant(0.1, map="tukey:power=0.5", dtype=torch.float64),
]


@pytest.mark.parametrize("head", FORMS, ids=lambda head: type(head).__name__)
def test_terms_add_up_to_the_decision(head):
    rng = torch.Generator().manual_seed(2)
    labels = torch.arange(40) % 4 + 2**60
    x = torch.rand(4, 5, generator=rng)[labels % 4] * 4 + torch.rand(40, 5, generator=rng)
    memory = head.new_memory(5).update(x, labels)
    head.fit(memory)
    for sample in x[:4].double() + 0.1:
        best, second = head.topk(sample[None], 2)[1][0].tolist()
        found = contributions(head, memory, sample, best, second)
        logits = dict(zip(head.classes.tolist(), head(sample[None])[0].tolist(), strict=True))
        assert found.gap == pytest.approx(logits[best] - logits[second], rel=1e-9)
        assert abs(found.remainder) < 1e-7 * (1 + abs(found.gap) + abs(found.base))
        assert found.gap > 0 > found.base
        back = contributions(head, memory, sample, second, best)
        assert back.gap == pytest.approx(-found.gap)


def test_a_linear_form_gives_each_feature_its_weight():
    head = LinearDiscriminant(0.1, dtype=torch.float64)
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [5.0, 1.0], [6.0, 0.0]])
    memory = head.new_memory(2).update(x, torch.tensor([0, 0, 1, 1]))
    head.fit(memory)
    weights = head(torch.eye(2)) - head(torch.zeros(1, 2))
    sample = torch.tensor([4.0, 3.0])
    found = contributions(head, memory, sample, 1, 0)
    expected = (weights[:, 1] - weights[:, 0]) * (sample - memory.means[0])
    torch.testing.assert_close(found.values, expected)
    assert found.largest(1)[0][0] == int(expected.abs().argmax())
    assert len(found.largest(99)) == 2


def test_a_head_of_another_form_says_so_and_what_does_not_fit_is_refused():
    head = NearestMean("cosine", dtype=torch.float64)
    memory = head.new_memory(2).update(torch.tensor([[5.0, 1.0], [0.1, 0.2]]), torch.tensor([4, 9]))
    head.fit(memory)
    assert abs(contributions(head, memory, torch.tensor([3.0, 1.0]), 4, 9).remainder) > 1e-3
    with pytest.raises(ValueError, match="class 5 is not known"):
        contributions(head, memory, torch.ones(2), 5, 9)
    with pytest.raises(ValueError, match="expected one vector"):
        contributions(head, memory, torch.ones(1, 2), 4, 9)
