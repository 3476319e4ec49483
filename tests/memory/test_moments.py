"""Second moments as triangles: in pairs, in single numbers and in two words."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from protocl import PrototypeMemory
from protocl.checks import assert_same
from protocl.errors import CapacityError, DataError, PrecisionWarning
from protocl.heads import Mahalanobis
from protocl.memory.batch import Level
from protocl.memory.limits.scatter import farthest

MATRICES: tuple[Level, ...] = ("shared", "full")
SQUARES: tuple[Level, ...] = ("diagonal", *MATRICES)


def samples(seed: int = 0, width: int = 6, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(30, width, generator=generator, dtype=torch.float64)
    return features, torch.arange(30) % classes


def filled(level: Level = "full", updates: int = 3, **settings: Any) -> PrototypeMemory:
    memory = PrototypeMemory(6, level, **settings)
    for seed in range(updates):
        memory.update(*samples(seed))
    return memory


def huge(level: Level, merges: int = 5) -> tuple[PrototypeMemory, int]:
    """A memory whose second moment is near 2^63 after one update, and how often that was added."""
    memory = PrototypeMemory(2, level, exact=True, step=1.0)
    # 2^15 samples of 2^24 are a second moment of 2^63 - 2^48 with one left out.
    one = memory.copy().update(torch.full((2**15 - 1, 2), 2.0**24), torch.zeros(2**15 - 1).long())
    for _ in range(merges):
        memory.merge(one)
    return memory, (2**15 - 1) * 2**48


def exactly(memory: PrototypeMemory) -> list[int]:
    """The first number of the second moment as an integer, at any level."""
    low, high = memory.second.flatten(), memory.get_buffer("second_high").flatten()
    return [int(low[0]) + ((int(high[0]) if len(high) else 0) << 64)]


# -- one number or two ----------------------------------------------------------------------------


@pytest.mark.parametrize("level", MATRICES)
def test_a_matrix_takes_a_triangle_and_the_other_half_nothing_until_it_is_needed(level):
    once = PrototypeMemory(6, level).update(*samples())
    assert once.second.shape[-1] == 21
    assert once.second_low.numel() == 0
    assert "second_low" not in once.parts()
    twice = once.copy().update(*samples(1))
    assert twice.second_low.shape == twice.second.shape
    assert twice.second_low.any()
    assert_same(twice - twice.empty_like().update(*samples(1)), once, "taken out again", bits=True)


@pytest.mark.parametrize("level", SQUARES)
def test_single_numbers_never_take_a_half_and_keep_the_stated_bound(level):
    single, pairs = filled(level, 60, moments="single"), filled(level, 60)
    assert "second_low" not in single.parts()
    assert single.nbytes == single.bytes_for(3) == pairs.bytes_for(3, moments="single")
    gap = (single.second_moment - pairs.second_moment).abs().max()
    assert 0 < gap <= single.total * torch.finfo(torch.float64).eps / 2 * single.squares.max()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("level", ["mean", *SQUARES])
def test_the_setting_is_saved_copied_and_compared(level, exact, tmp_path):
    single = filled(level, exact=exact, moments="single")
    single.save(tmp_path / "m.safetensors")
    loaded = PrototypeMemory.load(tmp_path / "m.safetensors")
    for other in (loaded, single.copy(), single.relabelled([4, 5, 6])):
        assert level == "mean" or other.moments == "single"
        assert other.empty_like().moments == other.moments
    pairs = filled(level, exact=exact)
    assert torch.equal(pairs.relabelled([4, 5, 6]).sums, pairs.sums)
    if level == "mean":  # has no second moment to differ in
        assert (single + pairs).total == 180
        return
    for one, other in ((single, pairs), (pairs, single)):
        with pytest.raises(ValueError, match=f"moments is {one.moments} here, {other.moments} in"):
            one.merge(other)
        with pytest.raises(ValueError, match=f"moments is {one.moments} in this memory"):
            one.load_state_dict(other.state_dict())


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="moments='double': expected 'pairs' or 'single'"):
        PrototypeMemory(2, moments="double")


def test_pairs_become_the_nearest_single_numbers_and_go_on_as_such():
    pairs = filled()
    single = PrototypeMemory.from_parts(PrototypeMemory(6, "full", moments="single"), pairs.parts())
    assert torch.equal(single.second, pairs.second + pairs.second_low)


@pytest.mark.parametrize("moments", ["pairs", "single"])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("level", MATRICES)
def test_states_of_whole_matrices_are_taken(level, exact, moments):
    memory = filled(level, exact=exact, moments=moments)
    state = memory.state_dict()
    unit = memory.forms["second"].unit
    whole = (memory.second_moment / unit).to(memory.second.dtype)
    state["second"] = whole
    if "second_low" in state:
        state["second_low"] = torch.zeros_like(whole)
    else:
        state.pop("second_high", None)
    fresh = memory.empty_like()
    fresh.load_state_dict(state)
    assert torch.equal(fresh.second_moment, memory.second_moment)
    assert fresh.second.shape == memory.second.shape


# -- what one float64 loses -----------------------------------------------------------------------


def one_by_one(rows: torch.Tensor, **settings: Any) -> PrototypeMemory:
    memory = PrototypeMemory(rows.shape[1], "full", **settings)
    for row in rows:
        memory.update(row[None], torch.zeros(1, dtype=torch.int64))
    return memory


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_offsets_cost_single_numbers_no_more_than_is_stated(offset):
    """Alike terms are rounded alike: the worst case for a running sum, one sample at a time."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(150, 2, generator=generator, dtype=torch.float64) + offset
    eps, size, truth = torch.finfo(torch.float64).eps, 150 * offset**2, _scatter(rows.tolist())
    for moments, bound in (("pairs", 4 * eps), ("single", 4 * eps + 150 * eps / 2)):
        found = float(one_by_one(rows, moments=moments).scatter()[0, 0, 1])
        assert abs(found - truth) <= bound * size


def test_single_numbers_are_a_running_sum_whose_error_is_that_of_ten_million_terms():
    generator = np.random.default_rng(0)
    few = torch.from_numpy(1e5 + generator.standard_normal((40, 1)))
    running = np.cumsum(few.numpy() ** 2)[-1]
    assert float(one_by_one(few, moments="single").second[0, 0]) == running
    n, eps = 10**7, np.finfo(np.float64).eps
    lost = {}
    for name, values in {
        "alike": np.full(n, 0.1),
        "far": 1e5 + generator.standard_normal(n),
    }.items():
        truth = float(np.sum(values**2, dtype=np.longdouble))
        lost[name] = abs(np.cumsum(values**2)[-1] - truth) / truth
        assert lost[name] <= n * eps / 2
    assert lost["alike"] > 1e-10  # as much as all of the scatter at an offset of 1e5
    assert farthest(n, bounded=False) <= math.sqrt(2e-5 / lost["alike"])
    assert farthest(n) == 1e5


def test_offsets_that_single_numbers_do_not_resolve_are_said():
    """Ten million samples, 300 standard deviations away: pairs keep ten digits of the scatter."""
    n, mean = 10**7, torch.tensor([[300.0, 0.0]], dtype=torch.float64)
    for moments, warns in (("pairs", False), ("single", True)):
        memory = PrototypeMemory.from_statistics(
            PrototypeMemory(2, "full", moments=moments), classes=[0, 1],
            counts=torch.tensor([n, n]), means=torch.cat([mean, mean + 1]),
            scatter=n * torch.eye(2, dtype=torch.float64).expand(2, 2, 2),
        )  # fmt: skip
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            Mahalanobis(None, tukey=None, normalize=False).fit(memory)
        assert any("moments='pairs'" in str(one.message) for one in said) == warns


@pytest.mark.parametrize("level", SQUARES)
def test_little_that_is_left_of_single_numbers_is_said(level):
    few, many = filled(level, 1, moments="single"), filled(level, 1, moments="single")
    for _ in range(10):
        many.merge(many.copy())
    both = few + many
    with pytest.warns(PrecisionWarning, match=r"0\.001 of the squares of a class are left"):
        left = both - many
    torch.testing.assert_close(left.second_moment, few.second_moment, rtol=1e-10, atol=1e-10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (both - few).subtract(many)  # nothing is left of any class


def _scatter(rows: list[list[float]]) -> float:
    """The covariance of two features times their number, in fractions."""
    first, second = ([Fraction(row[place]) for row in rows] for place in (0, 1))
    products = sum(a * b for a, b in zip(first, second, strict=True))
    return float(products - sum(first) * sum(second) / len(rows))


# -- two words ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", SQUARES)
def test_no_number_of_messages_overflows_a_second_moment(level, tmp_path):
    memory, one = huge(level, 5)
    assert exactly(memory) == [5 * one]
    assert float(memory.squares.flatten()[0]) == float(5 * one)
    memory.save(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert file.metadata()["format_version"] == "3"
    again = PrototypeMemory.load(tmp_path / "m.safetensors")
    assert_same(again, memory, "loaded")
    fewer, _ = huge(level, 4)
    assert_same(again - fewer, huge(level, 1)[0], "what is left needs one word")
    assert "second_high" not in (again - fewer).parts()
    assert_same(fewer + huge(level, 1)[0], memory, "in another order")


@pytest.mark.parametrize("level", SQUARES)
def test_single_words_refuse_what_they_cannot_hold_and_change_nothing(level):
    memory = PrototypeMemory.from_parts(
        PrototypeMemory(2, level, exact=True, step=1.0, moments="single"), huge(level, 1)[0].parts()
    )
    before = memory.copy()
    with pytest.raises(OverflowError, match="64 bits with step 1"):
        memory.merge(before)
    assert_same(memory, before, "after an overflow")
    with pytest.raises(DataError, match="upper words, which a memory of level"):
        PrototypeMemory.from_parts(memory, huge(level, 2)[0].parts())


def test_classes_that_fit_one_word_may_need_two_together():
    one, many = huge("full", 1)[0], PrototypeMemory(2, "full", exact=True, step=1.0)
    for class_id in range(5):
        many.merge(one.relabelled([class_id]))
    assert "second_high" not in many.parts()
    assert exactly(many.at_level("shared")) == [5 * (2**15 - 1) * 2**48]
    single = PrototypeMemory.from_parts(
        PrototypeMemory(2, "full", exact=True, step=1.0, moments="single"), many.parts()
    )
    with pytest.raises(OverflowError, match=r'64 bits.*larger step, or moments="pairs"'):
        single.at_level("shared")


def test_upper_words_that_no_samples_have_are_refused():
    memory = huge("full", 2)[0]
    parts = memory.parts() | {"second_high": torch.full_like(memory.second, 2**62 + 1)}
    with pytest.raises(DataError, match=r"'second_high' cannot be.*2\^126"):
        PrototypeMemory.from_parts(memory, parts)
    parts["second_high"] = torch.full_like(memory.second, 2**61 + 2**60)
    large = PrototypeMemory.from_parts(memory, parts)
    before = large.copy()
    with pytest.raises(OverflowError, match=r"2\^126"):
        large.merge(before)
    assert_same(large, before, "after a refusal")


def test_statistics_beyond_a_word_are_taken_from_floats():
    like = PrototypeMemory(1, "diagonal", exact=True, step=2.0**-40)
    made = PrototypeMemory.from_statistics(
        like, classes=[0], counts=torch.tensor([2]), sums=torch.tensor([[2.0]]),
        second_moment=torch.tensor([[2.0**20]]),
    )  # fmt: skip
    assert exactly(made) == [2**100]
    assert made.second_moment.tolist() == [[2.0**20]]


# -- what fits ------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_and_single_numbers_are_named(monkeypatch):
    monkeypatch.setattr("protocl.memory.limits.capacity.available_bytes", lambda device: 3 * 10**9)
    memory = PrototypeMemory(768, "full")
    assert memory.bytes_for(1000) == 16 * 1000 * (768 * 769 // 2 + 768 + 1)
    with pytest.raises(
        CapacityError, match=r"4\.\d+ GB.*'full' with moments='single' takes 2\.37 GB"
    ):
        memory.update(torch.ones(1000, 768), torch.arange(1000))
    assert len(memory) == 0
    assert math.isclose(memory.bytes_for(1000, moments="single"), 2.38e9, rel_tol=0.01)
