"""Two int64 words are Python's integers, in every carry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from protocl.memory.summation import (
    add_words_,
    negated_words,
    sum_words,
    words_as_float,
    words_of_floats,
)

EDGES = [sign * (2**power + more) for power in (0, 62, 63, 64, 65, 100, 120) for more in (-1, 0, 1)
         for sign in (-1, 1)]  # fmt: skip
VALUES = st.lists(st.integers(-(2**120), 2**120) | st.sampled_from(EDGES), min_size=1, max_size=5)


def words(values: list[int]) -> tuple[Tensor, Tensor]:
    low = [(value + 2**63) % 2**64 - 2**63 for value in values]
    return torch.tensor(low), torch.tensor(
        [(v - w) >> 64 for v, w in zip(values, low, strict=True)]
    )


def integers(low: Tensor, high: Tensor) -> list[int]:
    return [a + (b << 64) for a, b in zip(low.tolist(), high.tolist(), strict=True)]


@settings(max_examples=200, deadline=None)
@given(VALUES, st.randoms())
def test_sums_and_differences_are_those_of_integers(values: list[int], random: object) -> None:
    others = values[::-1]
    low, high = words(values)
    assert integers(low, high) == values
    add_words_(low, high, *words(others))
    assert integers(low, high) == [a + b for a, b in zip(values, others, strict=True)]
    add_words_(low, high, *negated_words(*words(others)))
    assert integers(low, high) == values
    assert integers(*(w[None] for w in sum_words(*words(values)))) == [sum(values)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9))
def test_a_message_of_one_word_is_added_with_its_carry(values: list[int]) -> None:
    low, high = words([0])
    for value in values:
        add_words_(low, high, torch.tensor([value]))
    assert integers(low, high) == [sum(values)]


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_floats_are_rounded_once(values: list[int]) -> None:
    whole = torch.tensor([float(value) for value in values], dtype=torch.float64)
    assert integers(*words_of_floats(whole)) == [int(value) for value in whole.tolist()]
    assert torch.equal(words_as_float(*words_of_floats(whole)), whole)


def test_what_no_samples_have_is_refused_and_changes_nothing() -> None:
    low, high = words([2**125])
    add_words_(low, high, low.clone(), high.clone())
    with pytest.raises(OverflowError, match=r"2\^126"):
        add_words_(low, high, low.clone(), high.clone())
    assert integers(low, high) == [2**126]
