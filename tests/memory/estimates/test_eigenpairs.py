"""Eigenpairs in place of a second moment: LoRanPAC's numbers, their bound, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl import PrototypeMemory
from protocl.errors import DataError
from protocl.heads import NearestMean, Ridge
from protocl.memory.estimates.eigenpairs import LowRankMemory
from protocl.memory.feature_maps import ReluProjection
from tests.golden.statistics_methods import inputs, values

F64 = torch.float64


def head_for(rank: int, share: float) -> Ridge:
    projection = ReluProjection(12, 40, weight=inputs()["W"])
    return Ridge(projection, rank=rank, share=share, regularization=0.0, dtype=F64)


def small(seed: int, rows: int = 20, rank: int = 3, **kind) -> tuple[torch.Tensor, LowRankMemory]:
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed), dtype=F64)
    labels = torch.arange(rows) % 3
    return x, LowRankMemory(6, rank=rank, **kind).update(x, labels)


@pytest.mark.parametrize(
    ("name", "rank", "share"), [("truncate0", 40, 1), ("truncate25", 30, 0.75)]
)
def test_singular_values_and_scores_of_the_authors_code(name: str, rank: int, share: float):
    golden, data, head = values("loranpac_E40")[name], inputs(), head_for(rank, share)
    memory = head.new_memory(12)
    for task in ((0, 1), (2, 3), (4, 5)):
        chosen = torch.isin(data["y"], torch.tensor(task))
        memory.update(data["X"][chosen], data["y"][chosen])
    assert len(memory.factor) == golden["rank"]
    expected = torch.tensor(golden["singular_values"], dtype=F64)
    torch.testing.assert_close(memory.values.sqrt(), expected, rtol=5e-7, atol=5e-7)
    scores = torch.tensor(golden["scores_first_6_test"], dtype=F64)
    found = head.fit(memory)(data["T"][:6])
    torch.testing.assert_close(found, scores, rtol=0, atol=6e-8)
    assert (memory.error_bound == 0) == (name == "truncate0")


def test_without_truncation_it_is_least_squares():
    data, head = inputs(), head_for(40, 1.0)
    memory = head.new_memory(12).update(data["X"], data["y"])
    mapped = torch.relu(data["X"] @ data["W"])
    one_hot = torch.nn.functional.one_hot(data["y"]).to(F64)
    weights = torch.linalg.lstsq(mapped, one_hot, driver="gelsd").solution
    expected = torch.relu(data["T"] @ data["W"]) @ weights
    torch.testing.assert_close(head.fit(memory)(data["T"]), expected, rtol=0, atol=3e-10)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**20), st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 7),
    st.sampled_from([0.3, 0.75, 1.0]), st.permutations(range(5)),
)  # fmt: skip
def test_no_direction_lacks_more_than_the_bound(seed, sizes, rank, share, order):
    """``0 <= G - F^T F <= e I`` for any batches, merged in any order; class sums are exact."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, 6, generator=generator, dtype=F64) for n in sizes]
    labels = [torch.randint(3, (n,), generator=generator) for n in sizes]
    plain = PrototypeMemory(6, "shared").update(torch.cat(parts), torch.cat(labels))

    def like() -> LowRankMemory:
        return LowRankMemory(6, rank=rank, share=share)

    one_by_one, merged = like(), like()
    for x, y in zip(parts, labels, strict=True):
        one_by_one.update(x, y)
    for place in (place for place in order if place < len(parts)):
        merged += like().update(parts[place], labels[place])
    slack = 1e-10 * float(plain.second_moment.trace())
    for memory in (one_by_one, merged):
        gap = torch.linalg.eigvalsh(plain.second_moment - memory.second_moment)
        assert -slack <= float(gap[0]) <= float(gap[-1]) <= memory.error_bound + slack
        torch.testing.assert_close(memory.squares, memory.second_moment.diagonal())
        torch.testing.assert_close(memory.sums, plain.sums)
        assert torch.equal(memory.counts, plain.counts)
        assert len(memory.factor) <= max(1, min(rank, round(share * plain.total)))


def test_two_merge_alike_in_either_order_and_their_bounds_add_up():
    (_, a), (_, b) = small(1), small(2)
    here, there = a + b, b + a
    torch.testing.assert_close(here.second_moment, there.second_moment)
    assert here.error_bound == pytest.approx(there.error_bound)
    assert here.error_bound >= a.error_bound + b.error_bound > 0


@pytest.mark.parametrize("rows", [0, 1, 20])
def test_it_is_saved_and_goes_on(tmp_path: Path, rows: int):
    _, memory = small(3, rows, share=0.75)
    memory.save(tmp_path / "Größe 1.safetensors")
    loaded = PrototypeMemory.load(tmp_path / "Größe 1.safetensors")
    assert isinstance(loaded, LowRankMemory)
    assert loaded.describe() == memory.describe()
    copied = memory.empty_like()
    copied.load_state_dict(memory.state_dict())
    more = torch.randn(5, 6, dtype=F64)
    for each in (memory, loaded, copied):
        each.update(more, torch.tensor([0, 1, 5, 5, 2]))
    for each in (loaded, copied):
        assert torch.equal(each.factor, memory.factor)
        assert each.error_bound == memory.error_bound
    most = memory.bytes_for(len(memory))
    assert memory.nbytes <= most
    assert rows < 20 or memory.nbytes == most == 4 * (16 * 6 + 16) + 8 * (3 * 6 + 1)


def test_a_damaged_factor_is_refused(tmp_path: Path):
    _, memory = small(4)
    for name, part in (("factor", torch.zeros(4, 6)), ("error", torch.full((1,), torch.nan))):
        with pytest.raises(DataError, match=f"array '{name}' is .* expected"):
            PrototypeMemory.from_parts(memory, {**memory.parts(), name: part.double()})
    parts = memory.parts()
    del parts["factor"]
    with pytest.raises(DataError, match="lack the array 'factor'"):
        PrototypeMemory.from_parts(memory, parts)
    with pytest.raises(DataError, match="damaged"):
        PrototypeMemory.described({**memory.describe(), "rank": "0"})
    description = memory.describe()
    del description["share"]
    with pytest.raises(DataError, match="damaged"):
        PrototypeMemory.described(description)


def test_it_stays_apart_from_exact_sums_and_forgets_nothing():
    x, memory = small(5)
    labels = torch.arange(20) % 3
    for level in ("mean", "shared"):
        exact = PrototypeMemory(6, level).update(x, labels)
        for one, other in ((memory, exact), (exact, memory)):
            with pytest.raises(ValueError, match="never mixed with exact sums"):
                one + other
    with pytest.raises(ValueError, match="rank is 3 here, 4 in the other"):
        memory + LowRankMemory(6, rank=4)
    for act in (lambda: memory - memory, lambda: memory.forget(0)):
        with pytest.raises(ValueError, match="build the memory again without those samples"):
            act()
    with pytest.raises(ValueError, match="cannot be split by class"):
        memory.subset([0])
    with pytest.raises(ValueError, match="exact sums"):
        memory.all_reduce()
    with pytest.raises(ValueError, match="no scatter"):
        memory.scatter()
    means = memory.at_level("mean")
    assert type(means) is PrototypeMemory
    assert not means.estimated
    assert torch.equal(means.sums, memory.sums)
    means.forget(0)
    assert torch.equal(NearestMean().fit(memory).predict(x), NearestMean().fit(
        PrototypeMemory(6).update(x, labels)).predict(x))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_features_of_any_precision_and_batches_that_are_refused(dtype: torch.dtype):
    x = torch.randn(8, 6).to(dtype)
    memory = LowRankMemory(6, rank=6).update(x, torch.arange(8) % 2)
    exact = PrototypeMemory(6, "shared").update(x, torch.arange(8) % 2)
    torch.testing.assert_close(memory.second_moment, exact.second_moment)
    kept = memory.factor.clone()
    for bad, error in ((torch.nan, ValueError), (1e200, OverflowError)):
        with pytest.raises(error):
            memory.update(torch.full((1, 6), bad, dtype=F64), torch.tensor([0]))
    with pytest.raises(ValueError, match="shape"):
        memory.update(x[:, :5], torch.arange(8))
    assert torch.equal(memory.factor, kept)
    assert memory.total == 8
    memory.update(torch.zeros(2, 6), torch.tensor([0, 1]))  # adds no direction
    assert len(memory.factor) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank=0"),
        ({"rank": 1.5}, "rank=1.5: expected a whole number"),
        ({"rank": True}, "rank=True: expected a whole number"),
        ({"rank": 3, "share": 0.0}, "share=0.0"),
        ({"rank": 3, "share": 1.5}, "share=1.5"),
        ({"rank": 3, "bias": True}, "bias=True takes the whole second moment"),
        ({"rank": 3, "balance": "shared"}, "balance='shared' takes"),
        ({"rank": 3, "scatter": "within"}, "scatter='within' takes"),
        ({"rank": 3, "regularization": "auto"}, "cannot choose it"),
        ({"rank": 3, "regularization": -1.0}, "regularization=-1.0"),
    ],
)
def test_settings_that_eigenpairs_cannot_serve(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Ridge(**{"regularization": 1.0, **settings})


def test_heads_and_memories_that_do_not_fit_each_other():
    head = Ridge(rank=3, regularization=1.0, share=1.0)
    for options, message in (
        ({"exact": True}, "exact=True with rank=3"),
        ({"level": "full"}, "level='full' with rank=3"),
        ({"calibrated": True}, "calibrated=True with rank=3"),
    ):
        with pytest.raises(ValueError, match=message):
            head.new_memory(6, **options)
    x, memory = small(6)
    assert head.fit(memory)(x).isfinite().all()
    exact = PrototypeMemory(6, "shared").update(x, torch.arange(20) % 3)
    with pytest.raises(ValueError, match="got sums of level 'shared'"):
        head.fit(exact)
    with pytest.raises(ValueError, match="got those of rank=3, share=1"):
        Ridge(rank=4, regularization=1.0, share=1.0).fit(memory)
    with pytest.raises(ValueError, match="needs a memory of level 'shared'"):
        Ridge(regularization=1.0).fit(memory)
