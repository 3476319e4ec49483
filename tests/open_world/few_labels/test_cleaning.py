"""Cleaning of labels: the authors' numbers, and what a memory gains by it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from protocl.errors import PrecisionWarning
from protocl.heads import NearestMean, Ridge
from protocl.heads.base import Head
from protocl.memory import PrototypeMemory
from protocl.open_world.few_labels.cleaning import clean, density
from tests.golden.discovery import drawn, golden, same, unit

GOLDEN = golden()["fopro"]


class Linear(Head):
    """The authors' classifier: a matrix without bias."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(dtype=torch.float64)
        self.weight = weight

    def _fit(self, memory: PrototypeMemory) -> None:
        pass

    def _logits(self, features: torch.Tensor) -> torch.Tensor:
        return features @ self.weight.T


def test_targets_and_labels_are_those_of_the_authors():
    rng = np.random.default_rng(601)
    few = drawn(GOLDEN, "few", unit(rng.standard_normal((8, 6))))
    x = drawn(GOLDEN, "x", unit(rng.standard_normal((10, 6))))
    y = drawn(GOLDEN, "y", rng.integers(0, 4, 10))
    weight = drawn(GOLDEN, "W", rng.standard_normal((4, 6)))
    trusted = PrototypeMemory(6).update(few, torch.arange(4).repeat_interleave(2))
    found = clean(x[2:], y[2:], trusted, Linear(weight).fit(trusted))
    same(found.targets, GOLDEN["soft_targets"][2:])
    assert found.labels.tolist() == GOLDEN["labels_after_cleaning"][2:]
    kept = torch.bincount(torch.cat([y[:2], found.labels[found.keep]]), minlength=4)
    trusted_first = torch.bincount(y[:2], minlength=4)
    assert (
        kept.tolist() == GOLDEN["visited"] or (kept - trusted_first).tolist() == GOLDEN["visited"]
    )
    for row in range(2, 4):
        distances = torch.tensor([GOLDEN["distance_sum"][row]])
        same(density(distances, int(GOLDEN["visited"][row])), GOLDEN["density"][row])
    assert density(torch.zeros(0), 0) == 0
    unchanged = found.labels == y[2:]
    same(found.gaps[unchanged], np.array(GOLDEN["distance_similarity"]["values"])[2:][unchanged])


def test_a_memory_learns_more_from_cleaned_samples():
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    x = x.float() / 16
    rng = torch.Generator().manual_seed(0)
    wrong = torch.rand(1000, generator=rng) < 0.5
    web = torch.where(wrong, (y[:1000] + 1) % 10, y[:1000])  # the same mistake each time
    head = NearestMean(normalize_input=True)
    trusted = head.new_memory(64).update(x[1000:1100], y[1000:1100])
    found = clean(x[:1000], web, trusted, temperature=0.05)
    right = (found.labels == y[:1000])[found.keep].float().mean()
    assert right > 0.8 > (web == y[:1000]).float().mean()

    def accuracy(labels: torch.Tensor, keep: torch.Tensor) -> float:
        ridge = Ridge()
        memory = ridge.new_memory(64).update(x[:1000][keep], labels[keep])
        return float((ridge.fit(memory).predict(x[1100:]) == y[1100:]).float().mean())

    cleaned = accuracy(found.labels, found.keep)
    assert cleaned > accuracy(web, torch.ones(1000, dtype=torch.bool)) + 0.1


def test_far_from_every_class_and_of_many_classes():
    trusted = PrototypeMemory(30).update(torch.eye(30), torch.arange(30) + 2**61)
    lost = torch.ones(1, 30) - 2 * torch.eye(30)[:1]
    found = clean(lost, torch.tensor([2**61]), trusted)
    assert not found.keep.any()
    nearer = clean(torch.eye(30)[:1], torch.tensor([2**61 + 3]), trusted, furthest=0.1)
    assert nearer.labels.tolist() == [2**61]
    assert nearer.keep.all()


def test_what_does_not_fit_is_refused():
    trusted = PrototypeMemory(2).update(torch.eye(2), torch.tensor([4, 9]))
    with pytest.raises(ValueError, match=r"classes \[5\] have no row"):
        clean(torch.eye(2), torch.tensor([4, 5]), trusted)
    head = NearestMean().fit(PrototypeMemory(2).update(torch.eye(2), torch.tensor([1, 2])))
    with pytest.raises(ValueError, match="other classes"):
        clean(torch.eye(2), torch.tensor([4, 9]), trusted, head)
    for setting in ({"temperature": 0}, {"share": 2}, {"sure": -1}):
        with pytest.raises(ValueError, match="expected a number"):
            clean(torch.eye(2), torch.tensor([4, 9]), trusted, **setting)
    assert clean(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), trusted).keep.shape == (0,)


def test_cosines_that_tell_nothing_are_warned_of():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()
    y = torch.arange(40) % 2
    x[y == 1] += 5
    near = clean(x, y, PrototypeMemory(3).update(x, y))
    assert bool(near.keep.any())
    far = x + 1e5
    with pytest.warns(PrecisionWarning, match="subtract the mean"):
        clean(far, y, PrototypeMemory(3).update(far, y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clean(x[:3], y[:3] * 0, PrototypeMemory(3).update(x[:3], y[:3] * 0))  # one class
