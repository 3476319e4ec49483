"""Reckoned sizes are those of the serialised message, byte for byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl.federation.wire.compat import UnusualError, content_bytes, reckoned_bytes

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
WHOLE = st.integers(-(2**63), 2**64 - 1)
FLOATS = st.floats()
ARRAYS = st.builds(
    Array,
    dtype=NAMES,
    shape=st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
    stype=NAMES,
    data=st.binary(max_size=300),
)
RECORDS = st.one_of(
    st.dictionaries(NAMES, ARRAYS, max_size=3).map(ArrayRecord),
    st.dictionaries(NAMES, WHOLE | FLOATS, max_size=5).map(MetricRecord),
    st.dictionaries(
        NAMES, WHOLE | FLOATS | st.booleans() | NAMES | st.binary(max_size=200), max_size=5
    ).map(ConfigRecord),
)


def serialised(content: RecordDict) -> int:
    return len(recorddict_to_proto(content).SerializeToString())


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, RECORDS, max_size=3).map(RecordDict))
def test_they_are_those_of_the_serialised_message(content: RecordDict) -> None:
    assert reckoned_bytes(content) == serialised(content)


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16383, 16384, 2**21 - 1, 2**21])
def test_lengths_around_those_of_another_varint(length: int) -> None:
    data = Array(dtype="int8", shape=(length,), stype="raw", data=bytes(length))
    content = RecordDict({"a": ArrayRecord({"x": data}), "c": ConfigRecord({"y": "ü" * length})})
    assert reckoned_bytes(content) == serialised(content)


@pytest.mark.parametrize("value", [[], [1], [2**63, 1], [0.5], [True], ["one", ""], [b"x"]])
def test_lists_are_serialised(value: Any) -> None:
    content = RecordDict({"c": ConfigRecord({"a": 1, "list": value})})
    with pytest.raises(UnusualError):
        reckoned_bytes(content)
    assert content_bytes(content) == serialised(content)


@pytest.mark.parametrize(
    "array",
    [
        Array(dtype="int8", shape=(2**31,), stype="raw", data=b""),
        Array(dtype="\ud800", shape=(3,), stype="raw", data=b""),
    ],
)
def test_what_flower_refuses_is_refused_as_by_flower(array: Array) -> None:
    content = RecordDict({"a": ArrayRecord({"x": array})})
    with pytest.raises(Exception) as refusal:  # noqa: PT011 - whatever it is
        serialised(content)
    with pytest.raises(refusal.type):
        content_bytes(content)


def test_a_negative_side_and_numpys_numbers_are_serialised() -> None:
    array = Array(dtype="int8", shape=(-1,), stype="raw", data=b"1")
    content = RecordDict(
        {"a": ArrayRecord({"x": array}), "m": MetricRecord({"y": np.float64(2.0)})}
    )
    assert content_bytes(content) == serialised(content)


def test_an_empty_message_has_no_bytes() -> None:
    assert reckoned_bytes(RecordDict()) == serialised(RecordDict()) == 0
