"""One client that stops or spoils sums: it is named, and the others go on.

Without the checks each of these ended every round in which the client took part, and nobody was
told which client it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from protocl.federation.client.client import ClientData
from protocl.federation.secure.client import ProtectedClient
from protocl.federation.secure.protocol import participant
from protocl.federation.secure.protocol.keys import COMMITMENT_BYTES
from protocl.federation.secure.protocol.sealing import SEALED_BYTES
from protocl.federation.secure.protocol.shamir import SHARE_BYTES
from protocl.federation.secure.strategy import ProtectedPrototypes
from protocl.federation.wire.validation import Limits
from tests.federation.secure.test_secure_attacks import PARTS, Federation

CLIENTS = 5
HONEST = set(range(1, CLIENTS))
HOSTILE = 1000
"""The node of client 0."""

Change = Callable[[RecordDict], None]


class Attacked(Federation):
    """A federation whose client 0 changes what it answers in one step.

    Args:
        step: in which.
        change: of the answer, in place.
    """

    def __init__(self, step: str, change: Change, clients: int = CLIENTS) -> None:
        super().__init__(clients)
        self.step, self.change = step, change

    def __call__(self, message: Message, context: Context) -> Message:
        reply = super().__call__(message, context)
        kind = message.metadata.message_type.removeprefix("train.")
        if kind == self.step and int(context.node_config["partition-id"]) == 0:
            content = RecordDict(dict(reply.content))
            self.change(content)
            return Message(content, reply_to=message)
        return reply

    @property
    def named(self) -> set[int]:
        return set(self.strategy.blame.reasons)

    def grow(self) -> None:
        self.have = {client: n + 1 for client, n in self.have.items()}


def entry(name: str, change: Callable[[Any], Any]) -> Change:
    """Change an entry of the answer."""

    def apply(content: RecordDict) -> None:
        answer = dict(content.config_records["answer"])
        content["answer"] = ConfigRecord({**answer, name: change(answer.get(name))})

    return apply


def vector(make: Callable[[int], np.ndarray]) -> Change:
    """Send another array in place of the masked vector."""

    def apply(content: RecordDict) -> None:
        size = content.array_records["arrays"]["masked"].numpy().size
        content["arrays"] = ArrayRecord({"masked": Array(make(size))})

    return apply


def garbage(length: int) -> Callable[[bytes], bytes]:
    """Values for the same parties, of the right length, that mean nothing."""
    size = 8 + length
    return lambda data: b"".join(
        data[i : i + 8] + os.urandom(length) for i in range(0, len(data), size)
    )


def accuse(content: RecordDict) -> None:
    """Complain of all others."""
    content["answer"] = ConfigRecord({"complaint": [2, 3, 4, 5]})
    content.pop("arrays", None)


@pytest.mark.parametrize(
    ("step", "change", "why"),
    [
        ("advertise", entry("keys", lambda k: bytes(64) + k[64:]), None),
        ("advertise", entry("keys", lambda k: (1).to_bytes(32, "little") + k[32:]), None),
        ("advertise", entry("keys", lambda k: k + bytes(96)), None),
        ("advertise", entry("keys", lambda k: k[:32] + k[:32] + k[64:]), "key that occurs twice"),
        ("share", entry("sealed", lambda s: s[:-7]), "train.share made no sense"),
        ("share", entry("sealed", lambda s: s[: len(s) // 4]), "did not share with each"),
        ("share", entry("commitments", lambda c: b""), "did not share with each"),
        ("mask", vector(lambda size: np.zeros(size + 1, np.int64)), "train.mask made no sense"),
        ("mask", vector(lambda size: np.zeros(size)), "train.mask made no sense"),
    ],
)
def test_the_sum_goes_on_without_it(step: str, change: Change, why: str | None) -> None:
    """Zero and small-order keys, cut shares, vectors of the wrong size and type."""
    federation = Attacked(step, change)
    assert federation.round() == HONEST
    if why is not None:
        assert why in federation.strategy.blame.reasons[HOSTILE]
    assert federation.named <= {HOSTILE}
    federation.grow()
    assert federation.round() == HONEST, "named, it is not asked"
    federation.grow()
    assert federation.round() == HONEST


@pytest.mark.parametrize(
    ("step", "change"),
    [
        ("share", entry("sealed", garbage(SEALED_BYTES))),
        ("share", entry("commitments", garbage(COMMITMENT_BYTES))),
        ("mask", accuse),
    ],
)
def test_garbage_for_all_ends_one_round_and_its_sender_is_named(step: str, change: Change) -> None:
    """Who receives it complains of its sender; who complains of everybody is named itself."""
    federation = Attacked(step, change)
    first = federation.round()
    assert first in (set(), HONEST)
    assert federation.named == {HOSTILE}
    assert "in dispute with 4 others" in federation.strategy.blame.reasons[HOSTILE]
    assert f"client {HOSTILE}: keys or shares" in str(federation.strategy.outcome(1)["named"])
    added = [first]
    for _ in range(7):
        federation.grow()
        added.append(federation.round())
    assert federation.named == {HOSTILE}
    assert sum(a == HONEST for a in added) >= 5, "it stops ever fewer rounds"
    assert federation_clients(federation) >= HONEST


def federation_clients(federation: Federation) -> set[int]:
    return {int(c) // PARTS for c in federation.strategy.memory.classes}


def test_wrong_shares_in_the_end_are_done_without_and_named() -> None:
    federation = Attacked("unmask", entry("seeds", garbage(SHARE_BYTES)))
    assert federation.round() == set(range(CLIENTS))
    assert federation.strategy.blame.reasons == {
        HOSTILE: "it gave other shares than were dealt to it"
    }


def test_shares_of_nothing_cost_one_sum_and_its_dealer_is_left_out_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are sealed and committed to as they should be; only in the end do they not fit."""
    federation = Federation(CLIENTS)
    share, split = federation.client.share, participant.split_secret

    def deal(message: Message, context: Context) -> Message:
        false = int(context.node_config["partition-id"]) == 0
        with monkeypatch.context() as patch:
            if false:
                patch.setattr(participant, "split_secret", lambda s, *a: split(os.urandom(32), *a))
            return share(message, context)

    federation.client.share = deal  # type: ignore[method-assign]
    assert federation.round() == set()
    assert "the shares that 1 dealt do not give what it committed to" in federation.failure
    assert federation.strategy.unfinished is None
    assert sum(federation.strategy.summed.lost.values()) == CLIENTS
    for _ in range(5):
        federation.have = {client: n + 1 for client, n in federation.have.items()}
        assert federation.round() == HONEST


def test_a_random_vector_spoils_few_sums_and_is_found_by_halving() -> None:
    """The sum is dropped, not added, and the round says so; what was in it is lost."""
    federation = Attacked(
        "mask", vector(lambda size: np.random.default_rng().integers(-(2**63), 2**63 - 1, size)),
        clients=8,
    )  # fmt: skip
    assert federation.round() == set()
    assert "the sum is dropped, not added, for it is out of range" in federation.failure
    assert len(federation.strategy.memory) == 0
    good = 0
    for _ in range(7):
        federation.grow()
        added = federation.round()
        assert 0 not in added
        good += bool(added)
    assert HOSTILE in federation.named
    assert good >= 3


def test_a_client_beyond_the_limits_keeps_out_of_the_sum_by_itself() -> None:
    """Honest, but with features that the server's limits do not allow: it spoils nothing."""
    federation = Federation(CLIENTS)
    load = federation.client.load

    def with_large_features(context: Context) -> ClientData:
        chunks = load(context).chunks
        factor = 2e6 if int(context.node_config["partition-id"]) == 0 else 1.0
        return ClientData([(x * factor, y) for x, y in chunks])

    federation.client.load = with_large_features
    assert federation.round() == HONEST
    assert not federation.strategy.blame.reasons


def test_a_sum_of_more_than_the_limits_allow_is_dropped() -> None:
    """As a plain message would be refused; what is counted in a class is at most the limit."""
    federation = Federation(CLIENTS)
    federation.strategy._check.limits = Limits(max_feature=0.5)
    assert federation.round() == set()
    assert "means of features beyond 0.5" in federation.failure


# -- vectors that are not masked ---------------------------------------------------------------


@pytest.mark.parametrize("value", [-(2**60), 2**62, 7, 2**16 * 20_000_000])
def test_without_masks_vectors_are_checked_as_messages_are(
    value: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Counts of -2^60, of more than a class may have, of a part of a sample."""
    federation = Federation(CLIENTS)
    federation.client = ProtectedClient(federation.load, federation.layout, secure=False)
    federation.strategy = ProtectedPrototypes(federation.layout, secure=False, wait=0.0)
    honest = federation.client.send

    def send(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if int(context.node_config["partition-id"]) == 0:
            sent = reply.content.array_records["arrays"]["vector"].numpy().copy()
            sent[0] = value
            reply.content["arrays"] = ArrayRecord({"vector": Array(sent)})
        return reply

    federation.client.send = send  # type: ignore[method-assign]
    assert federation.round() == HONEST
    assert federation.strategy.memory.counts.tolist() == [1] * 4
    assert f"the vector of client {HOSTILE} refused" in caplog.text
