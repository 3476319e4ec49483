"""DPCR: the authors' values, what a projection does, and where it has no place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protocl import PrototypeMemory
from protocl.heads import Ridge
from protocl.strategies.drift.estimators import AffineMap, pair_moments
from protocl.strategies.drift.row_space import mapped_in_row_spaces, row_spaces
from tests.golden.statistics_methods import inputs, values

GOLDEN = values("dpcr")
F64 = torch.float64


def old_and_new() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features before and after, labels, and which samples are of the old classes 0 to 3."""
    data = inputs()
    return data["X"], data["Z"], data["y"], data["y"] < 4


def change() -> AffineMap:
    x, z, _, old = old_and_new()
    return pair_moments(x[~old], z[~old], bias=False).solve()


def assert_golden(found: Tensor, expected: object) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=1e-8, atol=1e-8)


def test_map_prototypes_and_classifier_are_the_authors() -> None:
    x, z, y, old = old_and_new()
    assert_golden(change().weight.T, GOLDEN["map"])
    carried = mapped_in_row_spaces(PrototypeMemory(12, "full").update(x[old], y[old]), change())
    assert_golden(carried.means, GOLDEN["prototypes_of_old_classes"])
    traces = carried.second_moment.diagonal(dim1=1, dim2=2).sum(1)
    assert_golden(traces, GOLDEN["gram_traces_of_old_classes"])
    head = Ridge(regularization=200.0, normalize=True, dtype=F64)
    head.fit(carried.update(z[~old], y[~old]))
    assert_golden(head(torch.eye(12, dtype=F64)).T, GOLDEN["classifier_rg200"])


def test_a_class_of_few_samples_stays_in_what_they_span() -> None:
    """The released code keeps rounding errors for directions, and so projects onto everything."""
    x, _, y, _ = old_and_new()
    few = PrototypeMemory(12, "full").update(x[y == 5][:5], y[y == 5][:5])
    golden = GOLDEN["few"]
    assert float(row_spaces(few.second_moment)[0].trace()) == pytest.approx(golden["rank"])
    carried = mapped_in_row_spaces(few, change())
    assert_golden(carried.means[0], golden["prototype_with_true_row_space"])
    assert_golden(change()(few.means)[0], golden["prototype_as_released"])


def test_statistics_are_those_of_projected_samples_and_one_sample_stays_on_its_line() -> None:
    x, _, y, old = old_and_new()
    samples, labels = torch.cat([x[old], x[y == 4][:1]]), torch.cat([y[old], y[y == 4][:1]])
    memory = PrototypeMemory(12, "full").update(samples, labels)
    carried = mapped_in_row_spaces(memory, change())
    spaces = row_spaces(memory.second_moment)
    moved = (spaces[labels] @ change()(samples)[:, :, None])[:, :, 0]
    expected = PrototypeMemory(12, "full").update(moved, labels)
    torch.testing.assert_close(carried.means, expected.means)
    torch.testing.assert_close(carried.second_moment, expected.second_moment)
    line = torch.cosine_similarity(carried.means[4], samples[-1], dim=0)
    assert abs(float(line)) == pytest.approx(1)


def test_a_backbone_that_did_not_move_leaves_statistics_as_they_are() -> None:
    x, _, y, old = old_and_new()
    memory = PrototypeMemory(12, "full").update(x[old], y[old])
    stayed = mapped_in_row_spaces(memory, pair_moments(x[:5], x[:5], bias=False).solve(1e-6))
    torch.testing.assert_close(stayed.scatter(), memory.scatter())


def test_levels_without_row_spaces_and_maps_with_an_offset_are_refused() -> None:
    x, z, y, _ = old_and_new()
    with pytest.raises(ValueError, match="level 'shared' does not tell: keep level='full'"):
        mapped_in_row_spaces(PrototypeMemory(12, "shared").update(x, y), change())
    with pytest.raises(ValueError, match="bias=False"):
        mapped_in_row_spaces(PrototypeMemory(12, "full").update(x, y), pair_moments(x, z).solve())
