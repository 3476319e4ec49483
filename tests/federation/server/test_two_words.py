"""One message within all limits cannot make every later one overflow: sums have two words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord

from protocl import PrototypeMemory
from protocl.checks import assert_same
from protocl.federation.privacy.vector import StatisticsLayout
from protocl.federation.server.state import MergedMemory
from protocl.federation.wire.limits import Limits
from protocl.federation.wire.messages import Contribution, MessageReader, RejectedError, encode
from protocl.federation.wire.npy import array_of
from protocl.federation.wire.statistics import Precision
from protocl.io import checkpoint
from protocl.memory.batch import Level

LEVELS: tuple[Level, ...] = ("diagonal", "shared", "full")
DIM = 3


def empty(level: Level) -> PrototypeMemory:
    return PrototypeMemory(DIM, level, exact=True, fingerprint="b")


def honest(level: Level, seed: int) -> PrototypeMemory:
    features = torch.randn(8, DIM, generator=torch.Generator().manual_seed(seed))
    return empty(level).update(features, torch.arange(8) % 2)


def hostile(level: Level) -> PrototypeMemory:
    """One sample of class 0 whose squares are the largest within the limits, half of a word."""
    parts = empty(level).update(torch.zeros(1, DIM), torch.tensor([0])).parts()
    parts["second"] = torch.full_like(parts["second"], 2**62)
    return PrototypeMemory.from_parts(empty(level), parts)


def send(server: MergedMemory, memory: PrototypeMemory, client: str) -> None:
    reader = MessageReader(server.memory.empty_like())
    received = reader.read(*encode(Contribution(memory, f"life of {client}", 1, "full")))
    assert server.accept(received, client=client)


def overflowed(level: Level, clients: int = 3) -> MergedMemory:
    server = MergedMemory(empty(level))
    for number in range(clients):
        send(server, hostile(level), f"hostile {number}")
        send(server, honest(level, number), f"honest {number}")
    return server


@pytest.mark.parametrize("level", LEVELS)
def test_honest_messages_are_added_after_hostile_ones_which_can_be_forgotten(
    level: Level,
):
    server = overflowed(level)
    value = int(server.memory.second.flatten()[0])
    value += int(server.memory.get_buffer("second_high").flatten()[0]) << 64
    small = sum(int(honest(level, number).second.flatten()[0]) for number in range(3))
    assert value == 3 * 2**62 + small
    for number in range(3):
        server.forget_client(f"hostile {number}")
    expected = sum((honest(level, number) for number in range(1, 3)), start=honest(level, 0))
    assert_same(server.memory, expected, "without the hostile")


@pytest.mark.parametrize("level", LEVELS)
def test_a_server_is_saved_and_restored_with_both_words(level: Level, tmp_path: Path):
    server, again = overflowed(level), MergedMemory(empty(level))
    checkpoint.save(tmp_path / "server.ckpt", server.state())
    again.restore(checkpoint.load(tmp_path / "server.ckpt"))
    send(server, honest(level, 7), "late")
    send(again, honest(level, 7), "late")
    assert_same(again.memory, server.memory, "restored")


@pytest.mark.parametrize("precision", ["exact", "float32", "float16", "int8"])
@pytest.mark.parametrize("level", LEVELS)
def test_the_merged_memory_travels_with_both_words(level: Level, precision: Precision):
    memory = overflowed(level).memory
    reader = MessageReader(memory.empty_like(), Limits.of_sum())
    sent = encode(Contribution(memory, "", 0, "merged"), precision)
    arrived = reader.contribution(reader.read(*sent)).memory
    if precision == "exact":
        assert_same(arrived, memory, "merged")
    scale = memory.second_moment.abs().max()
    assert (arrived.second_moment - memory.second_moment).abs().max() <= scale / 100


@pytest.mark.parametrize("level", LEVELS)
def test_a_contribution_of_two_words_is_neither_sent_nor_taken(level: Level):
    memory, server = overflowed(level).memory, MergedMemory(empty(level))
    with pytest.raises(OverflowError, match="one contribution holds one word"):
        encode(Contribution(memory, "e", 1))
    arrays, header = encode(Contribution(memory, "e", 1, "merged"))
    assert "second_high" in arrays
    with pytest.raises(RejectedError, match="second_high"):
        MessageReader(empty(level)).read(arrays, ConfigRecord({**header, "kind": "delta"}))
    with pytest.raises(RejectedError, match="one contribution holds one word") as caught:
        server.accept(Contribution(memory, "e", 1, "full"), client="a")
    assert caught.value.reason == "overflow"
    with pytest.raises(OverflowError, match="a vector holds one word a number; use a larger step"):
        StatisticsLayout(empty(level), [0, 1]).pack(memory)


def test_upper_words_of_a_wrong_shape_or_size_are_refused():
    memory = overflowed("full").memory
    arrays, header = encode(Contribution(memory, "", 0, "merged"))
    for wrong in (torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 6), memory.second.clone()):
        records = ArrayRecord(dict(arrays.items()) | {"second_high": array_of(wrong.numpy())})
        reader = MessageReader(empty("full"))
        with pytest.raises((RejectedError, ValueError), match="second"):
            reader.contribution(reader.read(records, header))


def test_with_single_moments_one_client_may_leave_no_room_and_the_page_says_so():
    like = PrototypeMemory(1, "diagonal", exact=True, moments="single")
    parts = like.empty_like().update(torch.zeros(1, 1), torch.tensor([0])).parts()
    parts |= {"count": torch.tensor([2]), "second": torch.tensor([[2**63 - 1]])}
    server = MergedMemory(like)
    send(server, PrototypeMemory.from_parts(like, parts), "hostile")
    with pytest.raises(RejectedError, match="64 bits"):
        send(server, like.empty_like().update(torch.ones(5, 1), torch.zeros(5).long()), "honest")
    page = Path(__file__).parents[3] / "docs" / "threat_model.md"
    assert '`moments="single"`' in page.read_text().split("## Not defended")[1]
