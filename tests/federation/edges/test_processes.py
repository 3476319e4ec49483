"""One root, two edges, four nodes, each with the processes that its README describes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import torch

from protocl import PrototypeMemory
from protocl.cli.main import main
from protocl.data import BenchmarkConfig, load_data
from protocl.federation.books.books import FILE
from protocl.federation.books.database import BOOKS, connect
from protocl.federation.cli.forget import forget
from protocl.federation.client.benchmark_clients import BenchmarkClients
from protocl.federation.client.partition import PartitionConfig
from protocl.federation.config.compose import settle_short
from protocl.federation.deploy.scaffold import write_deployment
from protocl.federation.server.state import same_statistics
from tests.federation.deploy.test_deployment import Network, command_of, epochs, network, wait

CLIENTS, PATIENCE = 4, 1800.0
SETTINGS = settle_short(["partition=iid", "clients=4", "edges=2", "rounds=1", "seed=0"])[0]


class Tier(Network):
    """A SuperLink with its nodes."""

    def run(self, config: str = "rounds=500 min-clients=1 grace=2.0 quorum=0.5") -> None:
        words = [word for word in command_of(self.folder, "flwr run") if word != "--stream"]
        self.once(*words, "--run-config", config + " evaluate=0.0 deadline=300.0")

    def total(self) -> int:
        file = self.folder / "output/memory.safetensors"
        return PrototypeMemory.load(file).total if file.exists() else 0


@contextmanager
def tree(folder: Path) -> Iterator[dict[str, Tier]]:
    write_deployment(folder, SETTINGS)
    with ExitStack() as stack:
        tiers = {
            name: stack.enter_context(network(folder / name, Tier))
            for name in ("root", "edge-0", "edge-1")
        }
        yield tiers


def client_of(tier: Tier, folder: Path, partition: int) -> str:
    """The name of a partition's client in the books of an edge, which is at work."""
    lives = {life for life, number in epochs(folder).items() if number == partition}
    query = "SELECT client, epoch FROM ledger ORDER BY number"
    with closing(connect(tier.folder / "output/checkpoint" / FILE, BOOKS)) as books:
        return next(client for client, epoch in books.execute(query) if epoch in lives)


def expected(like: PrototypeMemory, partitions: list[int]) -> PrototypeMemory:
    data = load_data(BenchmarkConfig(name="digits"))
    flat = data.with_samples(data.x_train.flatten(1), data.x_test.flatten(1))
    clients = BenchmarkClients.from_config(
        flat, PartitionConfig("iid"), clients=CLIENTS, rounds=1, seed=0
    )
    rows = [torch.from_numpy(chunk) for p in partitions for chunk in clients.parts[p]]
    return like.empty_like().update(flat.x_train[torch.cat(rows)], flat.y_train[torch.cat(rows)])


def begin(tiers: dict[str, Tier]) -> None:
    for tier in tiers.values():
        tier.superlink()
        for number in range(3):
            tier.register(number)
    for edge in range(2):
        tier = tiers[f"edge-{edge}"]
        output = tier.folder / "output"
        tiers["root"].supernode(edge, f"edge-output='{output}'")
        for number in range(2):
            tier.supernode(number, f"partition-id={2 * edge + number} num-partitions={CLIENTS}")
    for name in ("edge-0", "edge-1", "root"):
        tiers[name].run()


def write_rosters(tiers: dict[str, Tier]) -> None:
    outputs = {name: tiers[name].folder / "output" for name in ("edge-0", "edge-1")}
    keys = {name: (path / "edge.pub").read_text().strip() for name, path in outputs.items()}
    for path in outputs.values():
        (path / "edges.json").write_text(json.dumps(keys))


def move(tiers: dict[str, Tier]) -> None:
    """Partition 1 goes from the first edge to the second."""
    old, new = tiers["edge-0"], tiers["edge-1"]
    write_rosters(tiers)
    client = client_of(old, old.folder, 1)
    output = old.folder / "output"
    assert main(["federate", "release", str(output), f"client={client}", "to=edge-1"]) == 0
    release = output / "releases" / f"{client}.release.json"
    wait("the release", release.exists, PATIENCE)
    old.kill("node1")
    (new.folder / "clients").mkdir(exist_ok=True)
    for file in (old.folder / "clients").glob("partition-1.*"):
        shutil.move(file, new.folder / "clients" / file.name)
    shutil.copy(release, new.folder / "clients/partition-1.release.json")
    new.supernode(2, f"partition-id=1 num-partitions={CLIENTS}")


@pytest.mark.slow
def test_a_killed_edge_a_client_that_moves_and_a_withdrawal_that_passes_both_levels(tmp_path):
    with tree(tmp_path / "tree") as tiers:
        begin(tiers)
        root = tiers["root"]
        memory = PrototypeMemory(64, exact=True)
        everything = expected(memory, [0, 1, 2, 3])
        wait("all clients at the root", lambda: root.total() == everything.total, PATIENCE)
        tiers["edge-0"].kill("superlink")
        tiers["edge-0"].superlink()
        tiers["edge-0"].run()
        move(tiers)
        wait("the move", lambda: root.total() == everything.total, PATIENCE)
        edge = tiers["edge-1"]
        wait("the new edge", lambda: edge.total() == expected(memory, [1, 2, 3]).total, PATIENCE)
        forget(edge.folder / "output", f"client={client_of(edge, edge.folder, 3)}", PATIENCE)
        rest = expected(memory, [0, 1, 2])
        wait("the withdrawal", lambda: root.total() == rest.total, PATIENCE)
        merged = PrototypeMemory.load(root.folder / "output/memory.safetensors")
        assert same_statistics(merged, expected(merged, [0, 1, 2]))
