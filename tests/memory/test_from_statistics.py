"""The public ways in and out: statistics that were computed, and parts as they are stored."""

from __future__ import annotations

import pytest
import torch

from protocl import PrototypeMemory
from protocl.checks import assert_same
from protocl.errors import DataError
from protocl.memory.batch import LEVELS
from protocl.memory.feature_maps import Tukey

WIDTH = 4


def filled(level="mean", **options) -> PrototypeMemory:
    generator = torch.Generator().manual_seed(0)
    memory = PrototypeMemory(WIDTH, level, fingerprint="a", **options)
    for _ in range(3):
        labels = torch.arange(40) % 5 * 10
        memory.update(torch.rand(40, WIDTH, generator=generator), labels)
    return memory


def given(memory: PrototypeMemory, **change) -> dict[str, torch.Tensor | None]:
    statistics = {"classes": memory.classes, "counts": memory.counts, "sums": memory.sums}
    if memory.level != "mean":
        statistics["second_moment"] = memory.second_moment
    return {**statistics, **change}


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_sums_and_moments_give_the_memory_they_are_of(level, exact):
    memory = filled(level, exact=exact, feature_map=Tukey(), raw_means=True)
    raw = memory.unmapped_means * memory.counts[:, None]
    found = PrototypeMemory.from_statistics(memory, **given(memory, raw_sums=raw))
    assert found.describe() == memory.describe()
    assert found.fingerprint == "a"
    assert_same(found, memory, "from sums")
    torch.testing.assert_close(found.unmapped_means, memory.unmapped_means)
    assert found.update(torch.rand(5, WIDTH), torch.arange(5)).total == memory.total + 5


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_means_and_scatter_do_as_well_in_any_order_of_classes(level, exact):
    memory = filled(level, exact=exact)
    turned = torch.arange(4, -1, -1)
    statistics = {"means": memory.means[turned], "counts": memory.counts[turned]}
    if level != "mean":
        scatter = memory.scatter()
        statistics["scatter"] = scatter if level == "shared" else scatter[turned]
    classes = memory.classes[turned].tolist()
    found = PrototypeMemory.from_statistics(memory, classes=classes, **statistics)
    assert found.classes.tolist() == memory.classes.tolist()
    torch.testing.assert_close(found.means, memory.means, rtol=0, atol=1e-9)
    if level != "mean":
        torch.testing.assert_close(found.scatter(), memory.scatter(), rtol=0, atol=1e-8)


def test_it_holds_no_tensor_of_the_caller():
    for level in LEVELS:
        memory = filled(level)
        statistics = given(memory)
        found = PrototypeMemory.from_statistics(memory, **statistics)
        before = found.copy()
        for name in statistics.keys() - {"classes"}:
            statistics[name].zero_()
        assert_same(found, before, level, bits=True)


@pytest.mark.parametrize(
    ("level", "change", "error", "message"),
    [
        ("mean", {"sums": None}, ValueError, "expected sums or means"),
        ("mean", {"means": torch.ones(5, 4)}, ValueError, "expected sums or means"),
        ("mean", {"sums": torch.ones(5, 3)}, ValueError, r"sums have shape \(5, 3\).*\(5, 4\)"),
        ("mean", {"sums": torch.ones(5, 4).long()}, TypeError, "int64: expected floating"),
        ("mean", {"sums": [[1.0]]}, TypeError, "sums is a list"),
        ("mean", {"sums": torch.full((5, 4), torch.nan)}, ValueError, "sums hold NaN"),
        ("mean", {"counts": torch.ones(5)}, TypeError, "counts have dtype"),
        ("mean", {"counts": torch.ones(4).long()}, ValueError, r"counts have shape \(4,\)"),
        ("mean", {"counts": torch.zeros(5).long()}, ValueError, "has no samples"),
        ("mean", {"classes": [1, 1, 2, 3, 4]}, ValueError, "comes twice"),
        ("mean", {"classes": [-1, 1, 2, 3, 4]}, ValueError, "below 0"),
        ("mean", {"classes": ["a"] * 5}, TypeError, "expected integer class ids"),
        ("mean", {"raw_sums": torch.ones(5, 4)}, ValueError, "raw_means=False"),
        ("mean", {"second_moment": torch.ones(5, 4)}, ValueError, "keeps no second moment"),
        ("full", {"second_moment": None}, ValueError, "expected second_moment or scatter"),
        ("full", {"second_moment": torch.ones(4, 4)}, ValueError, r"expected \(5, 4, 4\)"),
        ("shared", {"second_moment": torch.rand(4, 4).triu()}, ValueError, "not symmetric"),
    ],
)
def test_what_no_samples_could_give_is_refused(level, change, error, message):
    memory = filled(level)
    with pytest.raises(error, match=message):
        PrototypeMemory.from_statistics(memory, **given(memory, **change))


def test_what_does_not_fit_fixed_point_is_refused():
    memory = filled(exact=True)
    with pytest.raises(OverflowError, match="'sum' exceeds 64 bits"):
        PrototypeMemory.from_statistics(memory, **given(memory, sums=1e15 * memory.sums))
    single = filled("shared", exact=True, moments="single")
    with pytest.raises(OverflowError, match=r"'second' exceeds 64 .* or moments=\"pairs\""):
        PrototypeMemory.from_statistics(
            single, **given(single, second_moment=1e15 * single.second_moment)
        )


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_parts_are_what_forms_say_and_come_back_bit_for_bit(level, exact):
    memory = filled(level, exact=exact, raw_means=True)
    parts, forms = memory.parts(), memory.forms
    assert [n for n in parts if not n.endswith("_low")] == ["class_ids", "count", *forms]
    for name, form in forms.items():
        assert tuple(parts[name].shape) == (form.shape if form.shared else (5, *form.shape))
        assert parts[name].dtype == (torch.int64 if exact else torch.float64)
        value = parts[name] * form.unit + parts.get(f"{name}_low", 0)
        if name == "sum":
            assert torch.equal(value, memory.sums)
    assert_same(PrototypeMemory.from_parts(memory, parts), memory, "from parts", bits=True)


def test_halves_that_are_zero_may_be_left_out_and_nothing_else():
    memory = PrototypeMemory(WIDTH, "full").update(torch.rand(9, WIDTH), torch.arange(9) % 2)
    parts = {name: part for name, part in memory.parts().items() if not name.endswith("_low")}
    assert_same(PrototypeMemory.from_parts(memory, parts), memory, "without halves", bits=True)
    for name in ("count", "second"):
        with pytest.raises(DataError, match=f"lack the array '{name}'"):
            PrototypeMemory.from_parts(memory, {k: v for k, v in parts.items() if k != name})
