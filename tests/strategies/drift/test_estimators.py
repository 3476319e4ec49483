"""Drift estimates: golden values, planted drifts, additivity; statistics carried along."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from protocl import PrototypeMemory
from protocl.strategies.drift.estimators import (
    AffineMap,
    displaced,
    hit_displacements,
    mapped,
    pair_moments,
    perturbed,
    weighted_displacements,
)
from tests.golden.ptm import golden, inputs

CASE: dict[str, Any] = golden()["results"]["drift_task2"]
F64 = torch.float64


def planted() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Old and new features of classes 4 and 5, means of classes 0 to 3, and where they went."""
    data = inputs()
    eye = torch.eye(16, dtype=F64)
    rotation = eye + 0.1 * eye.roll(1, 1)
    old = data.train[data.experiences[2]]
    new = old @ rotation.T + 0.05
    means = torch.stack([data.train[data.train_labels == c].mean(0) for c in range(4)])
    return old, new, means, means @ rotation.T + 0.05


def relative_error(estimate: Tensor, truth: Tensor) -> float:
    return float((estimate - truth).norm() / truth.norm())


def test_semantic_drift_compensation_against_the_authors_code() -> None:
    old, new, means, truth = planted()
    displacement = weighted_displacements(means, old, new, CASE["sdc_sigma"]).mean
    expected = torch.tensor(CASE["sdc_displacement"], dtype=F64)
    torch.testing.assert_close(displacement, expected, rtol=1e-5, atol=1e-8)
    assert relative_error(means, truth) == pytest.approx(CASE["rel_err_no_compensation"], rel=1e-6)
    assert relative_error(means + displacement, truth) == pytest.approx(
        CASE["rel_err_sdc"], rel=1e-6
    )


def test_semantic_drift_estimates_of_parts_add_up() -> None:
    old, new, means, _ = planted()
    whole = weighted_displacements(means, old, new, 3.0).mean
    parts = [weighted_displacements(means, old[i::3], new[i::3], 3.0) for i in range(3)]
    merged = parts[2].plus(parts[0]).plus(parts[1]).mean
    assert float((merged - whole).abs().max()) <= 1e-15 + CASE["own_sdc_merged_max_abs_gap"]


def test_least_squares_map_against_the_golden_values() -> None:
    old, new, means, truth = planted()
    plain = pair_moments(old, new, bias=False).solve()(means)
    expected = torch.tensor(CASE["own_ldc_least_squares_protos"], dtype=F64)
    torch.testing.assert_close(plain, expected, rtol=2e-6, atol=1e-6)
    assert relative_error(plain, truth) == pytest.approx(
        CASE["rel_err_ldc_least_squares"], rel=1e-6
    )
    assert CASE["rel_err_ldc_least_squares_with_bias"] < 1e-12
    assert relative_error(pair_moments(old, new).solve()(means), truth) < 1e-12


def test_least_squares_maps_of_parts_add_up() -> None:
    old, new, means, _ = planted()
    whole = pair_moments(old, new).solve()(means)
    merged = pair_moments(old[::2], new[::2]).plus(pair_moments(old[1::2], new[1::2]))
    torch.testing.assert_close(merged.solve()(means), whole, rtol=1e-10, atol=1e-12)


def test_dead_features_and_few_samples_are_no_obstacle() -> None:
    old, new, means, _ = planted()
    old[:, 3] = 0
    few = pair_moments(old[:5], new[:5])
    assert few.solve()(means).isfinite().all()
    torch.testing.assert_close(few.solve()(old[:5]), new[:5], rtol=1e-6, atol=1e-8)
    assert few.solve(ridge=0.1)(means).isfinite().all()


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.1])
def test_a_backbone_that_did_not_move_leaves_prototypes_where_they_are(ridge: float) -> None:
    """Also in directions that the new classes do not have; they were once lost."""
    old, _, means, _ = planted()
    old[:, 3] = 0
    for seen in (old, old[:5]):
        torch.testing.assert_close(pair_moments(seen, seen).solve(ridge)(means), means)


@pytest.mark.parametrize("level", ["mean", "shared", "full"])
def test_mapped_statistics_are_those_of_mapped_samples(level: Any) -> None:
    data = inputs()
    change = AffineMap(torch.randn(16, 16, dtype=F64, generator=torch.Generator().manual_seed(0)),
                       torch.arange(16.0, dtype=F64))  # fmt: skip
    labels = 7 * data.train_labels + 1
    moved = mapped(PrototypeMemory(16, level).update(data.train, labels), change)
    expected = PrototypeMemory(16, level).update(change(data.train), labels)
    assert_same(moved, expected)


@pytest.mark.parametrize("level", ["mean", "diagonal", "shared", "full"])
def test_displaced_statistics_are_those_of_displaced_samples(level: Any) -> None:
    data = inputs()
    displacements = torch.randn(6, 16, dtype=F64, generator=torch.Generator().manual_seed(0))
    moved = displaced(
        PrototypeMemory(16, level).update(data.train, data.train_labels), displacements
    )
    expected = PrototypeMemory(16, level).update(
        data.train + displacements[data.train_labels], data.train_labels
    )
    assert_same(moved, expected)


def assert_same(one: PrototypeMemory, other: PrototypeMemory) -> None:
    assert torch.equal(one.classes, other.classes)
    assert torch.equal(one.counts, other.counts)
    torch.testing.assert_close(one.means, other.means)
    if one.level != "mean":
        torch.testing.assert_close(one.scatter(), other.scatter(), rtol=1e-7, atol=1e-7)


def test_variances_move_along_unchanged_where_correlations_are_unknown() -> None:
    data = inputs()
    memory = PrototypeMemory(16, "diagonal").update(data.train, data.train_labels)
    change = AffineMap(2 * torch.eye(16, dtype=F64), torch.ones(16, dtype=F64))
    moved = mapped(memory, change)
    torch.testing.assert_close(moved.means, 2 * memory.means + 1)
    torch.testing.assert_close(moved.scatter(), memory.scatter(), rtol=1e-7, atol=1e-7)


def test_fixed_point_statistics_are_refused() -> None:
    memory = PrototypeMemory(2, exact=True).update(torch.eye(2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="exact=True"):
        displaced(memory, torch.zeros(2, 2))


def test_perturbed_inputs_come_near_their_class_mean_and_stay_in_range() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 4, generator=generator)
    x = torch.rand(2, 5, 12, generator=generator)
    targets = torch.rand(2, 12, generator=generator) @ weight

    def features_of(x: Tensor) -> Tensor:
        return x @ weight

    def error(x: Tensor) -> Tensor:
        return (features_of(x) - targets[:, None]).square().mean((1, 2))

    moved = perturbed(x, targets, features_of, step=0.3, steps=4)
    assert bool((error(moved) < error(x)).all())
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    # Each class has a norm of its own: alone it moves as it does beside another.
    torch.testing.assert_close(
        perturbed(x[:1], targets[:1], features_of, step=0.3, steps=4), moved[:1]
    )


def test_only_samples_that_reach_their_class_count() -> None:
    means = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    old = torch.tensor([[[0.1, 0.0], [3.9, 0.0]], [[0.0, 1.0], [0.0, 2.0]]])
    new = old + torch.tensor([[[1.0, 0.0], [9.0, 9.0]], [[5.0, 5.0], [5.0, 5.0]]])
    displacements, hits = hit_displacements(means, old, new, torch.tensor([0, 1]))
    assert hits.tolist() == [1.0, 0.0]
    torch.testing.assert_close(displacements, torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=F64))


def test_inputs_in_another_unit_are_perturbed_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 4, generator=generator, dtype=F64)
    x = torch.rand(2, 5, 12, generator=generator, dtype=F64)
    x[0, 0, :2] = torch.tensor([0.0, 1.0])
    targets = 2 * torch.rand(2, 12, generator=generator, dtype=F64) @ weight
    moved = perturbed(x, targets, lambda x: x @ weight, step=0.5)
    assert moved.min() == 0
    standardised = perturbed(4 * x - 2, targets, lambda x: (x + 2) / 4 @ weight, step=0.5)
    torch.testing.assert_close(standardised, 4 * moved - 2)


def test_a_class_far_from_all_samples_moves_by_their_mean() -> None:
    old, new = torch.eye(3, dtype=F64), torch.eye(3, dtype=F64) + torch.arange(3, dtype=F64)
    far = weighted_displacements(torch.full((1, 3), 1e3, dtype=F64), old, new)
    torch.testing.assert_close(far.weights, torch.full((1,), 3e-5, dtype=F64))
    torch.testing.assert_close(far.mean, torch.tensor([[0.0, 1.0, 2.0]], dtype=F64))
