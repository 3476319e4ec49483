"""What once showed the vectors of single clients though everybody followed the protocol."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from protocl import PrototypeMemory
from protocl.errors import AllFailedError
from protocl.federation.client.client import ClientData
from protocl.federation.config.compose import load as load_settings
from protocl.federation.privacy.mechanism import GaussianMechanism
from protocl.federation.privacy.release import PrivateRelease
from protocl.federation.privacy.vector import StatisticsLayout
from protocl.federation.runner.run import run_federation
from protocl.federation.secure.client import ProtectedClient
from protocl.federation.secure.strategy import ProtectedPrototypes
from protocl.federation.wire.grid import InProcessGrid
from protocl.runner.folders import open_run

PARTS = 8


class Federation:
    """Clients whose every part of data is a class of its own, so that a sum says what is in it."""

    def __init__(self, clients: int, folder: Path | None = None, **grid: Any) -> None:
        self.layout = StatisticsLayout(PrototypeMemory(1, exact=True), range(clients * PARTS))
        self.have = dict.fromkeys(range(clients), 1)
        self.client = ProtectedClient(self.load, self.layout, keep=folder and folder / "clients")
        self.grid = InProcessGrid(self, clients, **grid)  # type: ignore[arg-type]
        self.folder = folder
        self.lost: set[tuple[str, int]] = set()
        self.begin_server()

    def begin_server(self) -> None:
        checkpoints = self.folder and self.folder / "server"
        self.strategy = ProtectedPrototypes(self.layout, checkpoints=checkpoints, wait=0.0)
        self.strategy.resume()

    def load(self, context: Context) -> ClientData:
        client = int(context.node_config["partition-id"])
        parts = range(self.have[client])
        return ClientData([(torch.ones(1, 1), torch.tensor([client * PARTS + p])) for p in parts])

    def __call__(self, message: Message, context: Context) -> Message:
        step = message.metadata.message_type.removeprefix("train.")
        if (step, int(context.node_config["partition-id"])) in self.lost:
            raise ConnectionError("lost")
        return self.client.app()(message, context)

    def round(self) -> set[int]:
        """One round; the clients of which something was added."""
        before = set(self.strategy.memory.classes.tolist())
        with suppress(AllFailedError):  # where a round only asks for shares
            self.strategy.start(self.grid, ArrayRecord(), num_rounds=1)
        added = set(self.strategy.memory.classes.tolist()) - before
        return {c // PARTS for c in added}

    @property
    def failure(self) -> str:
        return self.strategy.failures.get(self.strategy.round, "")


def test_one_client_with_something_new_waits_for_others() -> None:
    """The others add zeros, and the sum would be its vector."""
    federation = Federation(5)
    assert federation.round() == set(range(5))
    federation.have[2] += 1
    assert federation.round() == set()
    assert "1 of those who enrolled have something new, 3 are needed" in federation.failure
    federation.have[0] += 1
    federation.have[4] += 1
    assert federation.round() == {0, 2, 4}


@pytest.mark.parametrize("seed", range(10))
def test_who_was_lost_in_the_first_round_is_not_alone_in_a_later_one(seed: int) -> None:
    federation = Federation(10, lost=0.05, seed=seed)
    sizes = [len(federation.round()) for _ in range(5)]
    assert max(sizes) >= 5
    assert all(size == 0 or size >= 5 for size in sizes), sizes


def test_a_sum_of_two_tells_each_of_them_what_the_other_sent() -> None:
    federation = Federation(3)
    federation.lost = {("mask", 1)}
    assert federation.round() == set()
    assert "2 of those who sent a vector have something new, 3 are needed" in federation.failure
    federation.lost = set()
    assert federation.round() == {0, 1, 2}


class KilledError(BaseException):
    pass


def test_what_was_unmasked_and_not_saved_is_in_no_second_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, the server goes on without one node, which the difference would be."""
    federation = Federation(5, tmp_path)

    def die(*arguments: Any) -> None:
        raise KilledError

    monkeypatch.setattr(federation.strategy._sum, "add", die)
    with pytest.raises(KilledError):
        federation.round()
    federation.begin_server()
    federation.grid.online.discard(1004)
    assert federation.round() == set(range(5)), "the same sum, with the vector of who is away"
    federation.have = dict.fromkeys(range(5), 2)
    assert federation.round() == {0, 1, 2, 3}


def test_a_failed_sum_is_finished_or_given_up_but_not_begun_again() -> None:
    federation = Federation(5)
    federation.lost = {("unmask", client) for client in (1, 2, 3)}
    assert federation.round() == set()
    federation.have = dict.fromkeys(range(5), 2)
    federation.grid.online.discard(1000)
    assert federation.round() == set(), "its shares are asked for, nothing else"
    assert "2 of 5 parties gave their shares" in federation.failure
    for _ in range(8):
        federation.round()
    assert federation.strategy.unfinished is None
    assert sum(federation.strategy.summed.lost.values()) == 5
    federation.lost = set()
    assert federation.round() == {1, 2, 3, 4}
    classes = federation.strategy.memory.classes.tolist()
    assert {c % PARTS for c in classes} == {1}, "what was in the first sum is in no other"


def test_a_claim_of_no_noise_is_refused_before_anything_is_unmasked() -> None:
    """A colluder could fail sums of its choice with it, after they were unmasked."""
    layout = StatisticsLayout(PrototypeMemory(1, exact=True), range(7))
    release = PrivateRelease(GaussianMechanism(1.0, 0.5), layout, "local")
    sample = torch.ones(1, 1), torch.tensor([1])
    client = ProtectedClient(lambda context: ClientData([sample]), layout, release)

    def app(message: Message, context: Context) -> Message:
        reply = client.app()(message, context)
        if "noise" in reply.content.config_records["answer"] and context.node_id == 1000:
            reply.content.config_records["answer"]["noise"] = [0, 1]
        return reply

    strategy = ProtectedPrototypes(layout, release, wait=0.0)
    strategy.start(InProcessGrid(app, 5), ArrayRecord(), num_rounds=1)  # type: ignore[arg-type]
    assert strategy.contributors == {1: 4}
    assert not strategy.failures
    assert strategy._sum.noise == Fraction(4)


def test_a_server_of_another_state_gets_no_vector_for_a_second_sum(tmp_path: Path) -> None:
    """Neither in the first round after it nor, as it once did, in the next."""
    federation = Federation(5, tmp_path)
    assert federation.round() == set(range(5))
    for file in (tmp_path / "server").iterdir():
        file.unlink()
    federation.begin_server()
    federation.grid.online.discard(1004)
    for _ in range(3):
        assert federation.round() == set()
    assert federation.strategy.outcome(3)["lost"] == 4, "said at once, not when there is more"
    federation.have = dict.fromkeys(range(5), 2)
    assert federation.round() == {0, 1, 2, 3}, "it goes on with what is new"
    classes = federation.strategy.memory.classes.tolist()
    assert {c % PARTS for c in classes} == {1}
    assert federation.strategy.outcome(federation.strategy.round)["lost"] == 4


def test_strangers_to_a_sum_do_not_answer_for_its_parties() -> None:
    """Two shares are missing, and two nodes that were not invited give garbage for them."""
    federation = Federation(7)
    federation.grid.online -= {1005, 1006}
    federation.lost = {("unmask", client) for client in (3, 4)}
    assert federation.round() == set()
    federation.grid.online |= {1005, 1006}
    federation.lost = set()
    honest = federation.client.unmask

    def unmask(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        if partition < 5:
            return honest(message, context)
        garbage = b"".join(i.to_bytes(8, "big") + bytes(33) for i in range(1, 6))
        answer = {"identity": partition - 1, "seeds": garbage, "keys": b""}
        return Message(RecordDict({"answer": ConfigRecord(answer)}), reply_to=message)

    federation.client.unmask = unmask  # type: ignore[method-assign]
    assert federation.round() == set(range(5))


def test_samples_of_classes_that_are_not_listed_are_left_out() -> None:
    federation = Federation(4)
    inner = federation.load

    def load(context: Context) -> ClientData:
        (x, y), *others = inner(context).chunks
        stranger = (torch.cat([x, x]), torch.cat([y, torch.tensor([10_000])]))
        return ClientData([stranger, *others])

    federation.client.load = load
    assert federation.round() == set(range(4))
    assert federation.strategy.memory.counts.tolist() == [1] * 4


def test_a_client_counts_on_colluders_of_its_own() -> None:
    federation = Federation(5)
    federation.client.colluders = 2
    with pytest.raises(AllFailedError, match="counts on 0 colluders, this client on 2"):
        federation.strategy.start(federation.grid, ArrayRecord(), num_rounds=1)


def test_no_preset_shows_a_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes arrive in a stream, so that in some rounds a single client has something new."""
    added: list[dict[int, Any]] = []
    finish = ProtectedPrototypes._finish

    def note(strategy: ProtectedPrototypes, *arguments: Any) -> Any:
        spans = finish(strategy, *arguments)
        added.append({node: span for node, span in spans.items() if span.end > span.start})
        return spans

    monkeypatch.setattr(ProtectedPrototypes, "_finish", note)
    words = ["federation=digits_secure", "clients=5", "rounds=5", "partition.growth=stream"]
    (config,) = load_settings([*words, "seed=1", f"output={tmp_path}"])
    result = run_federation(config, open_run(config))
    assert added
    assert min(map(len, added)) >= 3
    assert any("waiting" in r for r in result["federation"]["waited_for"].values())
