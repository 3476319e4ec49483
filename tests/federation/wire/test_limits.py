"""What one client may claim and send, and that the defaults hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from protocl import PrototypeMemory
from protocl.errors import AllFailedError, ConfigError, DataError
from protocl.federation import (
    ClientData,
    FederatedPrototypes,
    InProcessGrid,
    Limits,
    Options,
    PrototypeClient,
    simulate,
)
from protocl.federation.config.compose import load as load_settings
from protocl.federation.server.state import MergedMemory
from protocl.federation.wire.messages import (
    Contribution,
    MessageReader,
    RejectedError,
    decode,
    encode,
)
from protocl.federation.wire.npy import array_of
from protocl.federation.wire.replies import read_confusion, require_size, size_of
from protocl.federation.wire.statistics import PackedForm
from protocl.heads import NearestMean
from protocl.memory.rows import class_id_of

DIM = 4
LEVELS = ("mean", "diagonal", "shared", "full")


def filled(level="mean", classes=3, *, exact=True, seed=0, first=0) -> PrototypeMemory:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * classes, DIM, generator=generator)
    memory = PrototypeMemory(DIM, level, exact=exact)
    return memory.update(x, torch.arange(4 * classes) % classes + first)


def reason_of(memory: PrototypeMemory, limits: Limits, **header) -> str:
    arrays, described = encode(Contribution(memory, "e", 1, "full"))
    for key, value in header.items():
        described[key.replace("_", "-")] = value
    with pytest.raises(RejectedError) as caught:
        MessageReader(memory.empty_like(), limits, ("delta", "full")).read(arrays, described)
    return caught.value.reason


# -- the defaults -------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("step", [2.0**-30, 2.0**-16, 0.1, 100.0])
def test_a_sample_within_the_default_limits_overflows_nothing(level, step):
    form = PackedForm(PrototypeMemory(DIM, level, exact=True, step=step))
    steps = Limits().feature_bound(form) / step
    assert steps ** (1 if level == "mean" else 2) < 2.0**63


@pytest.mark.parametrize("name", ["sum", "raw"])
def test_the_most_that_all_clients_may_claim_fits_64_bits(name):
    limits = Limits()
    assert limits.max_clients * limits.share(name) < 2**63


def test_clients_that_claim_all_they_may_leave_room_for_each_other():
    limits = Limits(max_clients=5)
    server = MergedMemory(PrototypeMemory(DIM, exact=True), limits=limits)
    for client in "abcde":
        memory = filled()
        memory.get_buffer("sum").fill_(2**63 // 5 - 1)
        assert server.accept(Contribution(memory, client, 1, "full"), client=client)
        with pytest.raises(RejectedError, match=r"its share of 64 bits.*max_clients=5"):
            server.accept(Contribution(filled(), client, 2), client=client)
    assert server.memory.total == 5 * 12


def test_limits_that_64_bits_do_not_hold_are_refused_with_the_numbers():
    like = PrototypeMemory(DIM, "full", exact=True)
    with pytest.raises(ValueError, match=r"does not fit 64 bits.*at most 32768"):
        MessageReader(like, Limits(max_feature=1e6))
    MessageReader(PrototypeMemory(DIM, "mean", exact=True), Limits(max_feature=1e6))
    MessageReader(PrototypeMemory(DIM, "full"), Limits(max_feature=1e9))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_bytes": 0},
        {"max_feature": float("nan")},
        {"max_feature": float("inf")},
        {"max_feature": 1e155},
        {"max_feature": 1e300},
        {"classes": [1.5]},
        {"classes": [""]},
        {"classes": [True]},
        {"max_clients": 0},
        {"max_width": -1},
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        Limits(**wrong)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("precision", ["exact", "float16", "int8"])
def test_features_up_to_the_largest_setting_are_judged_and_none_beyond(level, precision):
    memory = PrototypeMemory(DIM, level)
    x = torch.randn(12, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    memory.update(x * 1e139, torch.arange(12) % 3)
    reader = MessageReader(memory.empty_like(), Limits(max_feature=1e150))
    reader.read(*encode(Contribution(memory, "e", 1, "full"), precision))
    with pytest.raises(RejectedError, match="beyond 1e\\+138"):
        MessageReader(memory.empty_like(), Limits(max_feature=1e138)).read(
            *encode(Contribution(memory, "e", 1, "full"))
        )


# -- each limit ---------------------------------------------------------------------------------


def test_a_message_is_measured_with_all_that_is_in_it():
    arrays, header = encode(Contribution(filled(), "e", 1, "full"))
    content = RecordDict({"arrays-0": arrays, "header-0": header})
    size = size_of(arrays) + size_of(header)
    require_size(content, Limits(max_bytes=size + 20))
    for bulk in ("x" * 1000, ["y" * 10] * 100, [0] * 125, b"z" * 1000):
        content["more"] = ConfigRecord({"text": bulk})
        with pytest.raises(RejectedError, match=f"at most {size + 20} are accepted"):
            require_size(content, Limits(max_bytes=size + 20))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"epoch": "x" * 65}, "format"),
        ({"seq": -1}, "format"),
        ({"seq": 2**62}, "format"),
        ({"kind": "merged"}, "format"),
        ({"fingerprint": "f" * 257}, "mismatch"),
        ({"class_names": ["a" * 300, "b", "c"]}, "names"),
    ],
)
def test_texts_and_numbers_of_a_header_are_bounded(header, reason):
    assert reason_of(filled(), Limits(), **header) == reason


def test_only_listed_classes_are_accepted():
    assert reason_of(filled(classes=3), Limits(classes=[0, 1])) == "classes"
    arrays, header = encode(Contribution(filled(classes=3), "e", 1, "full"))
    reader = MessageReader(filled().empty_like(), Limits(classes=[2, 1, 0, 7]))
    assert reader.read(arrays, header).statistics.counts.sum() == 12
    named = PrototypeMemory(DIM, exact=True).update(
        torch.zeros(1, DIM), torch.tensor([class_id_of("cat")])
    )
    assert reason_of(named, Limits(classes=["dog"])) == "classes"
    arrays, header = encode(Contribution(named, "e", 1, "full"))
    MessageReader(named.empty_like(), Limits(classes=["dog", "cat"])).read(arrays, header)


@pytest.mark.parametrize("keep", [True, False])
def test_classes_of_a_client_are_counted_over_its_contributions(keep):
    server = MergedMemory(
        PrototypeMemory(DIM, exact=True), keep_contributions=keep, limits=Limits(max_classes=5)
    )
    server.accept(Contribution(filled(classes=3), "a", 1, "full"), client="a")
    server.accept(Contribution(filled(classes=4), "a", 2), client="a")
    before = server.memory.copy()
    with pytest.raises(RejectedError, match="this client would have 6 classes") as caught:
        server.accept(Contribution(filled(classes=2, first=9), "a", 3), client="a")
    assert caught.value.reason == "classes"
    assert server.memory.counts.tolist() == before.counts.tolist()
    server.accept(Contribution(filled(classes=1, first=9), "a", 3), client="a")
    server.accept(Contribution(filled(classes=5, first=20), "b", 1, "full"), client="b")


def test_classes_of_all_clients_are_counted():
    server = MergedMemory(PrototypeMemory(DIM, exact=True), limits=Limits(max_classes_in_all=4))
    server.accept(Contribution(filled(classes=3), "a", 1, "full"), client="a")
    with pytest.raises(RejectedError, match="all clients would have 5 classes"):
        server.accept(Contribution(filled(classes=4, first=1), "b", 1, "full"), client="b")
    server.accept(Contribution(filled(classes=3, first=1), "b", 1, "full"), client="b")
    assert len(server.memory) == 4


# -- over messages ------------------------------------------------------------------------------


def load(context: Context) -> ClientData:
    generator = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
    chunk = torch.randn(6, DIM, generator=generator), torch.arange(6) % 3
    return ClientData([chunk], test=chunk)


def federation(limits: Limits, grid: type[InProcessGrid] = InProcessGrid) -> FederatedPrototypes:
    empty = PrototypeMemory(DIM, exact=True)
    client = PrototypeClient(load, empty, head=NearestMean())
    strategy = FederatedPrototypes(empty, Options(limits=limits))
    simulate(strategy, client.app(), clients=3, rounds=1, grid=grid(client.app(), 3))
    return strategy


class Bulky(InProcessGrid):
    """The first node hides a megabyte of text in a record that nobody reads."""

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        if message.metadata.dst_node_id == 1000:
            reply.content["more"] = ConfigRecord({"text": "x" * 1_000_000})
        return reply


def test_a_message_that_is_too_large_is_refused_by_name_and_the_round_goes_on():
    strategy = federation(Limits(max_bytes=100_000), Bulky)
    refused = [entry for entry in strategy.merged.ledger if entry.outcome == "rejected"]
    assert [entry.client for entry in refused] == ["1000"]
    assert "size: a message of 1" in refused[0].reason
    assert strategy.memory.total == 12
    (failure,) = strategy.failed_evaluations[1]
    assert failure.startswith("client 1000: a message of 1")
    assert strategy.outcome(1)["failed-evaluations"] == 1


class Chatty(InProcessGrid):
    """The first node answers many times."""

    def send_and_receive(self, messages, *, timeout=None):
        replies = super().send_and_receive(messages, timeout=timeout)
        first = [r for r in replies if r.metadata.src_node_id == 1000]
        return [*replies, *first * 5]


def test_messages_of_a_client_in_a_round_are_counted():
    strategy = federation(Limits(max_messages=3), Chatty)
    assert strategy.merged.ledger.outcomes() == {"merged": 3, "duplicate": 2, "rejected": 3}
    assert strategy.memory.total == 18
    with pytest.raises(AllFailedError, match="3 classes; at most 2 are accepted"):
        federation(Limits(max_classes=2))


def test_a_client_takes_the_sum_of_many_others():
    """More samples of a class than one contribution may claim, and more classes."""
    merged = filled(classes=40)
    merged.get_buffer("count").fill_(18_000_000)
    arrays, header = encode(Contribution(merged, "", 0, "merged"))
    with pytest.raises(RejectedError, match="counts lie in"):
        decode(arrays, header, merged.empty_like())
    read = decode(arrays, header, merged.empty_like(), Limits.of_sum()).memory
    assert read.total == 40 * 18_000_000


def test_a_client_reads_every_name_that_a_server_accepts():
    name = "x" * 300
    named = PrototypeMemory(DIM, exact=True).update(
        torch.zeros(1, DIM), torch.tensor([class_id_of(name)])
    )
    names = {class_id_of(name): name}
    arrays, header = encode(Contribution(named, "e", 1, "full", names))
    MessageReader(named.empty_like(), Limits(max_text=1000)).read(arrays, header)
    arrays, header = encode(Contribution(named, "", 0, "merged", names))
    assert decode(arrays, header, named.empty_like(), Limits.of_sum()).names == names


def test_evaluations_are_bounded():
    def reply(pairs: np.ndarray) -> RecordDict:
        return RecordDict({"confusion": ArrayRecord({"pairs": array_of(pairs)})})

    read_confusion(reply(np.zeros((3, 2), dtype=np.int64)), Limits())
    many = np.zeros((3, 1_000_001), dtype=np.int64)
    with pytest.raises(DataError, match="1000001 pairs"):
        read_confusion(reply(many), Limits())
    with pytest.raises(DataError, match="9 classes evaluated; at most 8"):
        read_confusion(reply(np.tile(np.arange(9), (3, 1))), Limits(max_classes=8))
    with pytest.raises(RejectedError, match="a message of"):
        read_confusion(reply(many), Limits(max_bytes=1000))


# -- as settings --------------------------------------------------------------------------------


def test_limits_are_settings_of_the_command():
    words = ["limits.max_bytes=5000", "limits.classes=[1,cat]", "limits.max_feature=3"]
    (config,) = load_settings(words)
    assert config.limits == Limits(max_bytes=5000, classes=[1, "cat"], max_feature=3.0)
    with pytest.raises(ConfigError, match=r"limits\.max_clases.*max_classes"):
        load_settings(["limits.max_clases=3"])
    with pytest.raises(ConfigError, match=r"limits\.max_text=0: expected at least 1"):
        load_settings(["limits.max_text=0"])
    with pytest.raises(ConfigError, match=r"limits\.max_feature=1e\+200: .*at most 1e\+150"):
        load_settings(["limits.max_feature=1e200"])
