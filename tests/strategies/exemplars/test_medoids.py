"""Greedy k-medoids: the choice, its order, its quality."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from protocl.strategies.exemplars.medoids import medoids


def cost(x: Tensor, chosen: Tensor) -> float:
    """Sum of squared distances to the nearest chosen row."""
    return float(torch.cdist(x, x[chosen]).square().min(1).values.sum())


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 6), st.integers(0, 8), st.integers(0, 2**31))
def test_each_choice_is_the_best_beside_those_before(
    n: int, width: int, count: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=generator, dtype=torch.float64)
    chosen = medoids(x, count)
    assert len(chosen) == len(chosen.unique()) == min(count, n)
    for place in range(len(chosen)):
        beside = chosen[:place]
        best = min(cost(x, torch.cat([beside, torch.tensor([row])])) for row in range(n))
        assert cost(x, chosen[: place + 1]) == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_first_is_nearest_to_the_mean_and_any_beginning_is_the_choice_of_fewer() -> None:
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    chosen = medoids(x, 40)
    assert chosen[0] == (x - x.mean(0)).norm(dim=1).argmin()
    assert torch.equal(medoids(x, 15), chosen[:15])
    assert len(chosen.unique()) == 40


def test_one_from_each_of_well_separated_groups_comes_first() -> None:
    generator = torch.Generator().manual_seed(1)
    groups = torch.arange(400) % 10
    x = 100 * torch.eye(10)[groups] + torch.randn(400, 10, generator=generator)
    assert sorted(groups[medoids(x, 10)].tolist()) == list(range(10))


def test_takes_off_at_least_63_percent_of_what_the_best_choice_does() -> None:
    x = torch.randn(14, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    farthest = float(torch.cdist(x, x).max() ** 2) * len(x)
    best = min(cost(x, torch.tensor(rows)) for rows in itertools.combinations(range(14), 4))
    assert farthest - cost(x, medoids(x, 4)) >= (1 - np.exp(-1)) * (farthest - best)


def test_far_from_the_origin_the_choice_is_the_same() -> None:
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    moved = (x + 1000).to(torch.float32)
    assert medoids(moved, 5).tolist() == medoids(x, 5).tolist()


@pytest.mark.parametrize("shape", [(50, 1), (40, 2, 3, 3)])
def test_equal_samples_and_more_than_there_are(shape: tuple[int, ...]) -> None:
    assert sorted(medoids(torch.ones(shape), len(torch.ones(shape)) + 7).tolist()) == list(
        range(shape[0])
    )
    assert medoids(torch.ones(shape), 0).tolist() == []
    assert medoids(torch.ones(shape)[:0], 3).tolist() == []


def test_images_and_bytes_are_flattened_and_nothing_is_drawn() -> None:
    x = torch.randint(0, 255, (60, 1, 5, 5), generator=torch.Generator().manual_seed(4))
    before = torch.get_rng_state()
    chosen = medoids(x.to(torch.uint8), 9)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(chosen, medoids(x.flatten(1).to(torch.float64), 9))
