"""Contributions added up as they came give the same memory as adding memories one by one."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl import PrototypeMemory
from protocl.federation.server.accumulator import TERMS, Block
from protocl.federation.server.state import MergedMemory, same_statistics
from protocl.federation.wire.codec import pack_exactly
from protocl.federation.wire.limits import Limits
from protocl.federation.wire.messages import Contribution, MessageReader, Received, encode
from protocl.federation.wire.statistics import PackedForm
from protocl.federation.wire.validation import RejectedError
from protocl.io import checkpoint

DIM = 3
LEVELS = ("mean", "diagonal", "shared", "full")


def empty(level="mean", exact=True, **options) -> PrototypeMemory:
    return PrototypeMemory(DIM, level, exact=exact, fingerprint="b", **options)


def filled(like: PrototypeMemory, seed: int, classes=(0, 1, 2), size: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes)[torch.randint(len(classes), (9,), generator=generator)]
    features = torch.randn(9, DIM, generator=generator, dtype=torch.float64) * size
    return like.empty_like().update(features, labels)


def received(memory: PrototypeMemory, epoch="e", seq=1, kind="full") -> Received:
    sent = encode(Contribution(memory, epoch, seq, kind))
    return MessageReader(memory.empty_like()).read(*sent)


@settings(deadline=None, max_examples=40)
@given(
    sent=st.lists(
        st.tuples(
            st.integers(0, 99),
            st.lists(st.integers(0, 6), min_size=1, max_size=4, unique=True),
            st.sampled_from([1e-3, 1.0, 1e4, 1e9]),  # integers of 8 to 64 bits
            st.booleans(),
        ),
        max_size=12,
    )
)
@pytest.mark.parametrize("level", LEVELS)
def test_any_mixture_of_classes_and_widths_adds_up(level, sent):
    like = empty(level, step=2.0**-4)
    block, one_by_one, memory = Block(PackedForm(like)), like.empty_like(), like.empty_like()
    for seed, classes, size, empties in sent:
        part = filled(like, seed, tuple(classes), min(size, 1e4) if level != "mean" else size)
        one_by_one.merge(part)
        assert block.add(pack_exactly(part))
        if empties:
            block.empty_into(memory)
    block.empty_into(memory)
    assert same_statistics(memory, one_by_one)


def test_sums_of_32_bits_are_widened_before_they_overflow():
    like = empty()
    block, memory = Block(PackedForm(like)), like.empty_like()
    part = filled(like, 1)
    part.get_buffer("sum").fill_(2**31 - 1)
    for _ in range(5):
        packed = pack_exactly(part)
        assert packed.sums["sum"].dtype == np.int32
        block.add(packed)
    block.empty_into(memory)
    assert bool((memory.get_buffer("sum") == 5 * (2**31 - 1)).all())


def test_room_ends_where_64_bits_end():
    like = empty()
    block, memory = Block(PackedForm(like)), like.empty_like()
    part = filled(like, 1)
    part.get_buffer("sum").fill_(2**62)
    assert block.add(pack_exactly(part))
    assert not block.add(pack_exactly(part))
    block.empty_into(memory)
    assert not block.add(pack_exactly(part))
    assert bool((memory.get_buffer("sum") == 2**62).all())
    part.get_buffer("sum").fill_(2**62 - 1)
    assert block.add(pack_exactly(part))
    block.empty_into(memory)
    assert bool((memory.get_buffer("sum") == 2**63 - 1).all())


def test_the_least_integer_is_packed_as_it_is():
    part = filled(empty(), 1)
    part.get_buffer("sum").fill_(torch.iinfo(torch.int64).min)
    packed = pack_exactly(part)
    assert packed.sums["sum"].dtype == np.int64
    assert packed.reach["sum"] == 2**63


def test_sums_near_64_bits_are_still_exact_where_they_fit():
    """Positive and negative sums cancel: the bound says no, the sums themselves fit."""
    server = MergedMemory(empty(), limits=Limits(max_clients=1))
    part = filled(empty(), 1)
    for number, value in enumerate((2**62, -(2**62), 2**62, 2**62 - 1)):
        part.get_buffer("sum").fill_(value)
        server.accept(received_big(part, f"e{number}"), client=str(number))
    assert bool((server.memory.get_buffer("sum") == 2**63 - 1).all())
    part.get_buffer("sum").fill_(1)
    with pytest.raises(RejectedError) as caught:
        server.accept(received_big(part, "more"), client="more")
    assert caught.value.reason == "overflow"
    assert "more" not in server.clients
    with pytest.raises(KeyError):
        server.forget_client("more")


def received_big(memory: PrototypeMemory, epoch: str) -> Received:
    return Received.of(Contribution(memory, epoch, 1, "full"))


@pytest.mark.parametrize("level", LEVELS)
def test_floating_point_stays_close_over_many_blocks(level):
    like = empty(level, exact=False)
    server, whole = MergedMemory(like), like.empty_like()
    for number in range(2 * TERMS + 7):
        part = filled(like, number, size=10.0 ** (number % 5))
        whole.merge(part)
        server.accept(received(part, f"e{number}"), client=str(number))
    scale = float(whole.sums.abs().max())
    torch.testing.assert_close(server.memory.sums, whole.sums, rtol=0, atol=1e-13 * scale)
    if level != "mean":
        moment = whole.second_moment
        torch.testing.assert_close(
            server.memory.second_moment, moment, rtol=0, atol=1e-13 * float(moment.abs().max())
        )


@pytest.mark.parametrize("exact", [True, False])
def test_what_is_kept_of_a_client_is_the_message_itself(exact):
    arrays, header = encode(Contribution(filled(empty(exact=exact), 1), "e", 1, "full"))
    server = MergedMemory(empty(exact=exact))
    server.accept(MessageReader(empty(exact=exact)).read(arrays, header), client="a")
    (part,) = server.state()["_parts"]["a"]
    payload = np.frombuffer(arrays["sum"].data, dtype=np.uint8)
    assert np.shares_memory(part["sums"]["sum"].numpy(), payload)


@pytest.mark.parametrize("deltas", [1, 8, 30])
def test_a_client_of_many_deltas_is_forgotten_without_a_trace(deltas):
    like = empty("full")
    server, without = MergedMemory(like), like.empty_like()
    for seq in range(1, deltas + 1):
        delta = filled(like, seq, (seq % 5, 7))
        server.accept(received(delta, "e", seq, "full" if seq == 1 else "delta"), client="a")
        other = filled(like, 1000 + seq)
        without.merge(other)
        server.accept(received(other, f"o{seq}"), client=f"o{seq}")
    assert len(server.state()["_parts"]["a"]) <= 8
    server.forget_client("a")
    assert same_statistics(server.memory, without)


def test_classes_that_left_do_not_come_back_with_the_next_block():
    server = MergedMemory(empty())
    server.accept(received(filled(empty(), 1, (4,)), "a"), client="a")
    server.accept(received(filled(empty(), 2, (5,)), "b"), client="b")
    assert server.memory.classes.tolist() == [4, 5]
    server.forget_client("a")
    server.accept(received(filled(empty(), 3, (5,)), "c"), client="c")
    assert server.memory.classes.tolist() == [5]


@pytest.mark.parametrize("exact", [True, False])
def test_messages_that_are_kept_survive_a_file_without_a_warning(tmp_path, exact):
    like = empty(exact=exact)
    server = MergedMemory(like)
    for name in "ab":
        server.accept(received(filled(like, ord(name)), name), client=name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.save(tmp_path / "s", server.state())
    again = MergedMemory(like)
    again.restore(checkpoint.load(tmp_path / "s"))
    again.forget_client("a")
    server.forget_client("a")
    assert same_statistics(again.memory, server.memory)
    assert same_statistics(again.contribution_of("b"), filled(like, ord("b")))


def test_rows_of_a_list_of_classes_move_when_a_class_comes_between() -> None:
    like = empty()
    lists = [(1, 5), (5, 9), (1, 5), (0, 3), (5, 9), (1, 5), (3, 9)]
    parts = [
        like.empty_like().update(torch.full((2, DIM), float(i + 1)), torch.tensor(classes))
        for i, classes in enumerate(lists)
    ]
    form, merged, expected = PackedForm(like), like.empty_like(), like.empty_like()
    block = Block(form)
    for part in parts:
        assert block.add(pack_exactly(part))
        expected.merge(part)
    block.empty_into(merged)
    assert same_statistics(merged, expected)
