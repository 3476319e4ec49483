"""Whatever a client replies, the run goes on; merged is the sum of what was accepted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from numpy.typing import NDArray

from protocl import PrototypeMemory
from protocl.federation import (
    ClientData,
    FederatedPrototypes,
    Limits,
    Options,
    PrototypeClient,
)
from protocl.federation.config.compose import load as load_settings
from protocl.federation.privacy.vector import StatisticsLayout
from protocl.federation.robust.rules import ConsistencyScreen, RobustMerge
from protocl.federation.runner.run import FederatedRun, run_federation
from protocl.federation.runner.simulation import simulate
from protocl.federation.secure.client import ProtectedClient
from protocl.federation.secure.identities import SimulatedIdentities
from protocl.federation.secure.strategy import ProtectedPrototypes
from protocl.federation.secure.unfinished_sum import UnfinishedSum
from protocl.federation.server.state import MergedMemory
from protocl.federation.wire.compat import act_as_server, failed_reply, name_message
from protocl.federation.wire.npy import read_npy
from protocl.federation.wire.replies import who_failed
from protocl.heads import NearestMean
from protocl.runner.folders import open_run
from tests.federation.hostile import HostileGrid

DIM, CLIENTS, ROUNDS = 3, 6, 4
FIRST = 1000


def load(context: Context) -> ClientData:
    client = int(context.node_config["partition-id"])
    generator = torch.Generator().manual_seed(client)
    chunks = [
        (torch.randn(6, DIM, generator=generator), torch.arange(6) % 3 + client % 2)
        for _ in range(ROUNDS)
    ]
    return ClientData(chunks, test=chunks[0])


class Sum:
    """What was accepted, added up once more, in Python's integers."""

    def __init__(self) -> None:
        self.of_client: dict[str, dict[int, list[int]]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        original = MergedMemory.accept

        def accept(merged: MergedMemory, received: Any, **options: Any) -> bool:
            accepted = original(merged, received, **options)
            if accepted:
                *_, entry = merged.ledger
                self.add(entry.client, received)
            return accepted

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MergedMemory, "accept", accept)
            yield

    def add(self, client: str, received: Any) -> None:
        ids, counts, sums, _ = received.statistics
        known = {} if received.kind == "full" else self.of_client.get(client, {})
        for row, class_id in enumerate(ids.tolist()):
            new = [int(counts[row]), *(int(v) for a in sums.values() for v in a[row].ravel())]
            before = known.get(class_id, [0] * len(new))
            known[class_id] = [a + b for a, b in zip(before, new, strict=True)]
        self.of_client[client] = known

    def total(self) -> dict[int, list[int]]:
        total: dict[int, list[int]] = {}
        for known in self.of_client.values():
            for class_id, values in known.items():
                before = total.get(class_id, [0] * len(values))
                total[class_id] = [a + b for a, b in zip(before, values, strict=True)]
        return {class_id: values for class_id, values in total.items() if values[0]}


def held(memory: PrototypeMemory) -> dict[int, list[int]]:
    parts = memory.parts()
    rows = [[count] for count in memory.count.tolist()]
    for name in memory.forms:
        lower, upper = parts[name], parts.get(f"{name}_high", torch.zeros_like(parts[name]))
        for row, low, high in zip(rows, lower.tolist(), upper.tolist(), strict=True):
            row += [a + (b << 64) for a, b in zip(low, high, strict=True)]
    return dict(zip(memory.classes.tolist(), rows, strict=True))


def one_run(level: str, seed: int, **parts: Any) -> int:
    """Some hostile clients among honest ones; the number of replies that they changed."""
    empty = PrototypeMemory(DIM, level, exact=True, fingerprint="b")  # type: ignore[arg-type]
    client = PrototypeClient(load, empty, head=NearestMean())
    limits = Limits(max_bytes=100_000, max_classes=50, max_messages=2, max_text=200)
    strategy = FederatedPrototypes(empty, Options(limits=limits), **parts)
    hostile = {FIRST, FIRST + 1, FIRST + 2}
    grid = HostileGrid(
        client.app(), CLIENTS, hostile=hostile, share=0.7, draw=random.Random(seed), late=0.1
    )
    independent = Sum()
    with independent.watching():
        simulate(strategy, client.app(), clients=CLIENTS, rounds=ROUNDS, grid=grid)
    assert held(strategy.merged.memory) == independent.total()
    assert len(strategy.merged.memory) <= 3 * 50 + 4
    assert all(len(entry.reason) + len(entry.epoch) < 600 for entry in strategy.merged.ledger)
    for honest in range(3, CLIENTS):
        # What a client may claim within all limits can leave no room in 64 bits for others.
        if not parts and "overflow" not in strategy.merged.ledger.reasons():
            counts = strategy.merged.contribution_of(str(FIRST + honest)).total
            assert counts >= 6 * (ROUNDS - 2), "late at most"
    return grid.mutations


def many_runs(mutations: int) -> None:
    seed, done = 0, 0
    while done < mutations:
        level = ("mean", "diagonal", "full")[seed % 3]
        done += one_run(level, seed)
        seed += 1


def test_the_run_goes_on_and_the_sum_is_that_of_what_was_accepted():
    many_runs(300)


@pytest.mark.slow
def test_the_run_goes_on_after_any_of_many_replies():
    many_runs(14_000)


@pytest.mark.parametrize("seed", range(3))
def test_defences_see_hostile_replies_and_go_on(seed):
    assert one_run("mean", seed, screen=ConsistencyScreen(0.5)) > 5
    assert one_run("mean", seed, merge=RobustMerge("geometric_median")) > 5


# -- secure sums --------------------------------------------------------------------------------


class SecureWorld:
    """One hostile client of seven; what is summed is what the others sent, and its vector."""

    def __init__(self, seed: int) -> None:
        layout = StatisticsLayout(PrototypeMemory(DIM, exact=True), range(4))
        # In every other world the clients pin a roster, and sign who stayed.
        identities = SimulatedIdentities(7) if seed % 2 else None
        client = ProtectedClient(load, layout, signer_of=identities)
        self.strategy = ProtectedPrototypes(layout, roster=identities and identities.roster)
        self.grid = HostileGrid(
            client.app(), 7, hostile={FIRST}, share=0.5, draw=random.Random(seed)
        )
        self.grid.watch = self.watch
        self.added = np.zeros(layout.size, dtype=np.int64)
        finish = self.strategy._finish

        def finish_and_note(unfinished: UnfinishedSum, grid: Any) -> Any:
            spans = finish(unfinished, grid)
            expected = sum(self.offered(node) for node in spans)
            np.testing.assert_array_equal(
                self.strategy._sum.total, self.before + expected + (FIRST in spans) * self.added
            )
            return spans

        self.strategy._finish = finish_and_note  # type: ignore[method-assign]

    def watch(self, before: Message, after: Message) -> None:
        """Note what the change of a masked vector adds to the sum if it gets into it."""
        if before.metadata.message_type == "train.mask" and after.has_content():
            with suppress(Exception):
                old, new = (
                    read_npy(reply.content.array_records["arrays"]["masked"].data)
                    for reply in (before, after)
                )
                if new.shape == old.shape:
                    self.added = new.astype(np.int64) - old.astype(np.int64)

    def offered(self, node: int) -> NDArray[np.int64]:
        state = self.grid._contexts[node].state
        return state.array_records["protocl-vector"]["vector"].numpy()

    def run(self) -> int:
        for _ in range(ROUNDS):
            self.before = self.strategy._sum.total.copy()
            self.added = np.zeros_like(self.before)
            self.strategy.start(self.grid, ArrayRecord(), num_rounds=1)
        return self.grid.mutations


def many_secure_runs(mutations: int) -> None:
    seed, done, added = 0, 0, 0
    while done < mutations:
        world = SecureWorld(seed)
        done += world.run()
        added += sum(world.strategy.contributors.values())
        seed += 1
    assert added > 3 * seed, "most rounds add what the others have"


def test_secure_rounds_go_on_whatever_a_client_replies():
    many_secure_runs(200)


@pytest.mark.slow
def test_secure_rounds_go_on_after_any_of_many_replies():
    many_secure_runs(6_000)


# -- the methods that train ---------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fedavg", "fedproto", "fedavg_prototypes"])
def test_trained_methods_go_on_whatever_a_client_replies(tmp_path, monkeypatch, method):
    def hostile_grid(run: FederatedRun) -> HostileGrid:
        return HostileGrid(
            run.method.client_app, 6, hostile={FIRST, FIRST + 1}, share=0.8, draw=random.Random(0)
        )

    monkeypatch.setattr(FederatedRun, "_grid", hostile_grid)
    words = [f"output={tmp_path}", "federation=digits", f"method={method}", "clients=6", "rounds=5"]
    (config,) = load_settings([*words, "evaluate=1", "method.local_epochs=1"])
    result = run_federation(config, open_run(config))
    assert result["status"] == "complete"
    assert np.isfinite(result["metrics"]["last_accuracy"])


def test_the_superlink_answers_for_a_node_that_is_gone():
    act_as_server()
    asked = Message(RecordDict(), dst_node_id=7, message_type="train")
    name_message(asked, "m")
    reply = failed_reply(asked, "Node Unavailable")
    assert who_failed(reply, []) == 7
    reply.metadata.__dict__["_src_node_id"] = 1
    assert who_failed(reply, [asked]) == 7
    assert who_failed(reply, []) == 1
