"""Every change of the server's state happens whole or not at all, wherever it is stopped."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context

from protocl import PrototypeMemory
from protocl.federation import ClientData, FederatedPrototypes, InProcessGrid, PrototypeClient
from protocl.federation.server import running_sum
from protocl.federation.server.running_sum import RunningSum
from protocl.federation.server.sampling import Options
from protocl.federation.server.state import MergedMemory, same_statistics
from protocl.federation.server.tombstones import TombstoneFile
from protocl.federation.wire.codec import pack_exactly
from protocl.federation.wire.limits import Limits
from protocl.federation.wire.messages import Contribution, RejectedError
from protocl.federation.wire.statistics import PackedForm
from tests.federation.stopping import stopped_at

DIM = 2
WHERE = ("server/state.py", "running_sum.py", "accumulator.py", "exactly_once/server.py",
         "exactly_once/undo.py", "exactly_once/departures.py", "wire/traffic.py", "server/kept.py",
         "server/forgetting.py")  # fmt: skip


def counts(file: str) -> bool:
    return file.endswith(WHERE)


def memory_of(seed: int, *, exact: bool = True, level: str = "mean") -> PrototypeMemory:
    x = torch.randn(6, DIM, generator=torch.Generator().manual_seed(seed))
    memory = PrototypeMemory(DIM, level, exact=exact)  # type: ignore[arg-type]
    return memory.update(x, torch.arange(6) % 3 + seed % 2)


def books(server: MergedMemory) -> Any:
    """All that the state says, in a form that can be compared."""
    memory = server.memory
    known = {
        name: sorted(value) if isinstance(value, set) else {k: v for k, v in value.items() if v}
        for name, value in server.known.state().items()
    }
    parts = {
        client: [
            (part.class_ids.tolist(), part.counts.tolist()) for part in server._kept.of(client)
        ]
        for client in sorted(server._kept)
    }
    return (
        memory.classes.tolist(), memory.counts.tolist(), memory.sums.tolist(), list(server.ledger),
        known, parts, dict(server.names), sorted(server._forgotten_classes),
        {client: list(entries) for client, entries in server.ledger._merged.items()},
    )  # fmt: skip


def begun(exact: bool, keep: bool, deltas: int = 1) -> MergedMemory:
    server = MergedMemory(PrototypeMemory(DIM, exact=exact), keep_contributions=keep)
    for client, seed in (("a", 1), ("b", 2)):
        server.accept(
            Contribution(memory_of(seed, exact=exact), client, 1, "full", {0: "zero"}),
            client=client,
        )
    for seq in range(2, 2 + deltas):
        server.accept(Contribution(memory_of(seq, exact=exact), "a", seq), client="a")
    return server


def delta(server: MergedMemory) -> None:
    exact = server.memory.exact
    server.accept(Contribution(memory_of(5, exact=exact), "b", 2, names={3: "three"}), client="b")


def replacement(server: MergedMemory) -> None:
    full = Contribution(
        memory_of(6, exact=server.memory.exact), "new", 1, "full", {}, ("a",), (), "secret"
    )
    server.accept(full, client="a")


def ninth(server: MergedMemory) -> None:
    """After which a client's contributions are added up."""
    seq = server.known.settled_of("a").seq + 1
    server.accept(Contribution(memory_of(7, exact=server.memory.exact), "a", seq), client="a")


CHANGES: dict[str, tuple[Callable[[MergedMemory], object], int]] = {
    "a delta": (delta, 1),
    "a full state": (replacement, 1),
    "the ninth delta": (ninth, 7),
    "forget a client": (lambda server: server.forget_client("a"), 1),
    "forget classes": (lambda server: server.forget_classes([1, 2]), 1),
}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_is_stopped_anywhere_has_happened_or_not(change, exact, monkeypatch):
    monkeypatch.setattr(running_sum, "_BYTES", 60 if exact else 1 << 26)
    action, deltas = CHANGES[change]
    before = books(begun(exact, True, deltas))
    done = begun(exact, True, deltas)
    action(done)
    after, server = books(done), begun(exact, True, deltas)
    for line in itertools.count(1):
        if not stopped_at(line, partial(action, server), counts):
            break
        found = books(server)
        assert found in (before, after), f"stopped at line {line}"
        if found == after:
            server = begun(exact, True, deltas)
    assert line > 20
    assert books(server) == after, "once more after so many stops"


@pytest.mark.parametrize("exact", [True, False])
def test_without_contributions_it_is_the_same(exact):
    server = begun(exact, False)
    before = books(server)
    for line in itertools.count(1):
        if not stopped_at(line, partial(delta, server), counts):
            break
        if books(server) != before:
            assert server.ledger.outcomes() == {"merged": 4}
            assert server.memory.total == 24
            server = begun(exact, False)
    assert server.memory.total == 24


def test_a_sum_that_is_read_while_it_is_stopped_counts_nothing_twice():
    form, expected = PackedForm(memory_of(0)), memory_of(1) + memory_of(2)
    for line in itertools.count(1):
        total = RunningSum(form, memory_of(0).empty_like(), kept=True)
        for seed in (1, 2):
            total.add(pack_exactly(memory_of(seed)))
        if not stopped_at(line, lambda total=total: total.memory, counts):
            break
        assert same_statistics(total.memory, expected)
    assert line > 10


def test_a_memory_that_was_handed_out_stays_as_it_was():
    server = begun(True, True)
    memory = server.memory
    before = memory.copy()
    delta(server)
    replacement(server)
    server.forget_client("b")
    assert same_statistics(memory, before)
    assert not same_statistics(server.memory, before)


def test_what_is_refused_for_overflow_changes_nothing():
    server = MergedMemory(PrototypeMemory(DIM, exact=True), limits=Limits(max_clients=1))
    big = memory_of(1)
    big.get_buffer("sum").fill_(2**62)
    server.accept(Contribution(big, "a", 1, "full"), client="a")
    before = books(server)
    for kind, epoch, client in (("full", "b", "b"), ("delta", "a", "a")):
        with pytest.raises(RejectedError) as caught:
            server.accept(Contribution(big, epoch, 2, kind), client=client)  # type: ignore[arg-type]
        assert caught.value.reason == "overflow"
    assert books(server) == before


def load(context: Context) -> ClientData:
    seed = int(context.node_config["partition-id"])
    x = torch.randn(4, DIM, generator=torch.Generator().manual_seed(seed))
    return ClientData([(x, torch.arange(4) % 2)])


@pytest.mark.parametrize("stop", ["add", "_save"])
def test_forgetting_that_was_stopped_is_called_again(tmp_path, monkeypatch, stop):
    """The disk is full when it is written down; then it is not."""
    empty = PrototypeMemory(DIM, exact=True)
    strategy = FederatedPrototypes(empty, Options(evaluate=0.0), checkpoints=tmp_path)
    client = PrototypeClient(load, empty)
    strategy.start(InProcessGrid(client.app(), 2), ArrayRecord(), num_rounds=1)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    home = TombstoneFile if stop == "add" else FederatedPrototypes
    with monkeypatch.context() as patch:
        patch.setattr(home, stop, full)
        with pytest.raises(OSError, match="No space"):
            strategy.forget_client("1000")
    strategy.forget_client("1000")
    assert strategy.memory.total == 4
    again = FederatedPrototypes(empty, Options(evaluate=0.0), checkpoints=tmp_path)
    again.resume()
    assert same_statistics(again.memory, strategy.memory)
    assert len(list(TombstoneFile(tmp_path))) == 1
    assert np.array_equal(again.merged.clients, ["1001"])
