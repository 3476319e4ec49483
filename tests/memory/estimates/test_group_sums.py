"""Moments of group means add up: any split gives the same bits, and the estimate of all groups."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl import PrototypeMemory
from protocl.errors import PrecisionWarning
from protocl.memory.estimates.group_moments import GroupMoments
from protocl.memory.estimates.group_sums import GroupSums
from protocl.memory.estimates.subsamples import SubSamples

DIM, STEP = 4, 2.0**-16


def client(number: int, dealt: SubSamples, *, exact: bool) -> PrototypeMemory:
    generator = torch.Generator().manual_seed(number)
    size = 1 + number * 7 % 20
    x = torch.randn(size, DIM, generator=generator) * 10 ** (number % 3) + number
    y = torch.randint(0, 4, (size,), generator=generator)
    return PrototypeMemory(DIM, exact=exact, step=STEP).update(*dealt(x, y))


def bits(memory: PrototypeMemory) -> dict[str, list[float]]:
    return {name: part.tolist() for name, part in memory.parts().items()}


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    clients=st.lists(st.integers(0, 60), min_size=1, max_size=8, unique=True),
    cut=st.integers(0, 8),
    gone=st.integers(0, 7),
    means=st.sampled_from([1, 3]),
    weights=st.sampled_from(["samples", "groups"]),
    exact=st.booleans(),
)
@pytest.mark.filterwarnings("ignore::protocl.errors.PrecisionWarning")
def test_any_split_is_the_whole_and_what_is_subtracted_was_never_there(
    clients: list[int], cut: int, gone: int, means: int,
    weights: Literal["samples", "groups"], exact: bool,
) -> None:  # fmt: skip
    sums = GroupSums(dealt := SubSamples(means), weights)
    parts = [client(number, dealt, exact=exact) for number in clients]
    whole = sums.kind(parts[0])
    for edge in (parts[:cut], parts[cut:]):
        if edge:
            whole.merge(sums(edge))
    at_once = sums(parts[::-1])
    flat, tree = GroupMoments(parts, dealt).memory(weights), sums.memory(whole)
    assert tree.describe() == flat.describe()
    assert torch.equal(tree.counts, flat.counts)
    assert torch.equal(tree.classes, flat.classes)
    torch.testing.assert_close(tree.sums, flat.sums, rtol=1e-14, atol=1e-11)
    scale = float(flat.second_moment.abs().max())
    units = DIM * STEP**2 * len(parts) * 4 * float(flat.counts.max())
    rounding = 1e-12 * scale * float(flat.counts.max())
    assert float((tree.second_moment - flat.second_moment).abs().max()) <= units + rounding
    if exact:
        assert bits(whole) == bits(at_once)
        place = gone % len(parts)
        rest = parts[:place] + parts[place + 1 :]
        expected = sums(rest) if rest else sums.kind(parts[0])
        assert bits(whole.subtract(sums([parts[place]]))) == bits(expected)


def test_what_has_no_place_is_refused():
    sums = GroupSums()
    with pytest.raises(ValueError, match="no groups"):
        sums([])
    named = PrototypeMemory(1, exact=True).update(torch.ones(1, 1), torch.tensor([2**62]))
    with pytest.raises(OverflowError, match="no room for two ids a class"):
        sums([named])
    alone = sums([PrototypeMemory(1, exact=True).update(torch.ones(2, 1), torch.tensor([0, 0]))])
    with pytest.warns(PrecisionWarning, match="no class has two groups"):
        assert sums.memory(alone).scatter().tolist() == [[0.0]]
    assert len(sums([PrototypeMemory(1, exact=True)])) == 0
