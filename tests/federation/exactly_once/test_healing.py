"""Restored servers, restored and copied clients, over messages, with states on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message

from protocl import PrototypeMemory
from protocl.errors import AllFailedError, DataError
from protocl.federation import ClientData, FederatedPrototypes, InProcessGrid, PrototypeClient
from protocl.federation.books.backup import back_up, restore
from protocl.federation.client.state import StatesOnDisk
from protocl.federation.server.sampling import Options
from protocl.federation.server.state import same_statistics

DIM, CLIENTS, ROUNDS = 3, 3, 12
EMPTY = PrototypeMemory(DIM, exact=True)


def chunk(client: int, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * client + t)
    return torch.randn(4, DIM, generator=generator), torch.arange(4) % 2 + client


def memory_of(client: int, chunks: int) -> PrototypeMemory:
    memory = EMPTY.empty_like()
    for t in range(chunks):
        memory.update(*chunk(client, t))
    return memory


def load(context: Context) -> ClientData:
    client = int(context.node_config["partition-id"])
    return ClientData([chunk(client, t) for t in range(ROUNDS)])


def server(folder: Path, screen=None, *, keep: bool = True) -> FederatedPrototypes:
    strategy = FederatedPrototypes(
        EMPTY, Options(evaluate=0.0), keep_contributions=keep, checkpoints=folder / "server",
        screen=screen,
    )  # fmt: skip
    strategy.resume()
    return strategy


def nodes(folder: Path, clients: int = CLIENTS) -> InProcessGrid:
    """Processes that were just started."""
    client = PrototypeClient(load, EMPTY, states=StatesOnDisk(folder / "clients"))
    return InProcessGrid(client.app(), clients)


def rounds(strategy: FederatedPrototypes, grid: InProcessGrid, number: int = 1) -> None:
    strategy.start(grid, ArrayRecord(), num_rounds=number)


def require_sum(strategy: FederatedPrototypes, chunks: dict[int, int]) -> None:
    """The memory is that of so many chunks of each client, and the ledger says the same."""
    expected = EMPTY.empty_like()
    for client, number in chunks.items():
        expected += memory_of(client, number)
    assert same_statistics(strategy.memory, expected)
    entries = [entry for entry in strategy.merged.ledger if entry.outcome == "merged"]
    assert sum(sum(entry.counts) for entry in entries) == strategy.memory.total


def test_a_server_restored_from_a_backup_hears_everything_again(tmp_path):
    grid = nodes(tmp_path)
    rounds(server(tmp_path), grid, 2)
    shutil.copytree(tmp_path / "server", tmp_path / "backup")
    rounds(server(tmp_path), grid, 3)
    shutil.rmtree(tmp_path / "server")
    shutil.copytree(tmp_path / "backup", tmp_path / "server")
    restored = server(tmp_path)
    rounds(restored, grid, 4)
    require_sum(restored, dict.fromkeys(range(CLIENTS), 6))


def test_without_contributions_an_empty_folder_is_what_heals_a_restored_server(tmp_path):
    """It says so, and adds nothing twice meanwhile."""
    grid = nodes(tmp_path)
    rounds(server(tmp_path, keep=False), grid, 2)
    shutil.copytree(tmp_path / "server", tmp_path / "backup")
    rounds(server(tmp_path, keep=False), grid, 3)
    shutil.rmtree(tmp_path / "server")
    shutil.copytree(tmp_path / "backup", tmp_path / "server")
    restored = server(tmp_path, keep=False)
    rounds(restored, grid, 2)
    require_sum(restored, dict.fromkeys(range(CLIENTS), 2))
    refused = [entry.reason for entry in restored.merged.ledger if entry.outcome == "rejected"]
    assert len(refused) >= CLIENTS
    assert all("begin in an empty folder" in reason for reason in refused[-CLIENTS:])
    shutil.rmtree(tmp_path / "server")
    anew = server(tmp_path)
    rounds(anew, grid, 5)
    require_sum(anew, dict.fromkeys(range(CLIENTS), 5))


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_client_restored_from_a_snapshot_in_a_new_run_counts_once(tmp_path, chunks):
    strategy = server(tmp_path)
    rounds(strategy, nodes(tmp_path), chunks)
    shutil.copytree(tmp_path / "clients", tmp_path / "backup")
    rounds(strategy, nodes(tmp_path), 2)
    shutil.rmtree(tmp_path / "clients")
    shutil.copytree(tmp_path / "backup", tmp_path / "clients")
    restored = server(tmp_path)
    rounds(restored, nodes(tmp_path), 2)
    require_sum(restored, dict.fromkeys(range(CLIENTS), chunks + 4))


def test_what_a_restored_client_lost_is_said_and_the_ledger_equals_the_memory(tmp_path):
    """Its samples of the rounds since are gone, and the server need not keep them for it."""
    known = [1]

    def shrinking(context: Context) -> ClientData:
        return ClientData([chunk(0, t) for t in range(known[0])])

    client = PrototypeClient(shrinking, EMPTY, states=StatesOnDisk(tmp_path / "clients"))
    strategy = server(tmp_path)
    rounds(strategy, InProcessGrid(client.app(), 1))
    (file,) = (tmp_path / "clients").glob("*.safetensors")
    snapshot = file.read_bytes()
    known[0] = 2
    rounds(strategy, InProcessGrid(client.app(), 1))
    file.write_bytes(snapshot)
    known[0] = 1
    rounds(strategy, InProcessGrid(client.app(), 1), 2)
    require_sum(strategy, {0: 1})
    assert "lost with a restored client: 4" in [entry.reason for entry in strategy.merged.ledger]
    assert strategy.merged.ledger.outcomes()["replaced"] == 2


def test_of_two_copies_the_later_claims_the_life_and_the_other_is_refused(tmp_path):
    """Same samples up to the copy, others after it; three rounds of silence change it back."""
    own = {0: [chunk(0, 0), chunk(1, 1)], 1: [chunk(0, 0), chunk(2, 2)]}

    def copied(context: Context) -> ClientData:
        return ClientData(own[int(context.node_config["partition-id"])])

    client = PrototypeClient(copied, EMPTY, states=StatesOnDisk(tmp_path))
    grid = InProcessGrid(client.app(), 2)
    first, later = sorted(grid.online)
    grid.online = {first}
    strategy = FederatedPrototypes(EMPTY, Options(evaluate=0.0))
    rounds(strategy, grid)
    shutil.copy(tmp_path / "partition-0.safetensors", tmp_path / "partition-1.safetensors")
    grid.online = {first, later}
    rounds(strategy, grid, 5)
    both = memory_of(0, 1).update(*chunk(2, 2))
    assert same_statistics(strategy.memory, both)
    assert len(strategy.merged.clients) == 1
    assert strategy.merged.ledger.reasons()["claimed"] >= 3
    merged = strategy.merged.ledger.outcomes()["merged"]
    rounds(strategy, grid, 3)
    assert strategy.merged.ledger.outcomes()["merged"] == merged
    grid.online = {first}
    rounds(strategy, grid, 4)
    assert same_statistics(strategy.memory, memory_of(0, 1).update(*chunk(1, 1)))


def test_what_was_screened_out_comes_again_when_the_reason_has_passed(tmp_path):
    strict = [True]

    def screen(contributions, merged):
        return ["not yet" if strict[0] and 0 not in c.memory else None for c in contributions]

    strategy, grid = server(tmp_path, screen), nodes(tmp_path)
    rounds(strategy, grid, 2)
    require_sum(strategy, {0: 2})
    strict[0] = False
    rounds(strategy, grid, 1)
    require_sum(strategy, dict.fromkeys(range(CLIENTS), 3))


def test_who_was_forgotten_stays_away_from_a_server_set_back_to_a_backup(tmp_path):
    strategy, grid = server(tmp_path), nodes(tmp_path)
    rounds(strategy, grid, 2)
    back_up(tmp_path / "server", tmp_path / "backup")
    rounds(strategy, grid, 1)
    strategy.forget_client("1001")
    restore(tmp_path / "server", tmp_path / "backup")
    restored = server(tmp_path)
    require_sum(restored, {0: 2, 2: 2})
    rounds(restored, grid, 2)
    require_sum(restored, {0: 4, 2: 4})
    again = server(tmp_path)
    require_sum(again, {0: 4, 2: 4})


def test_a_server_of_an_earlier_version_is_refused_in_a_sentence(tmp_path):
    strategy = server(tmp_path)
    rounds(strategy, nodes(tmp_path))
    state = strategy.merged.state()
    del state["known"]
    with pytest.raises(ValueError, match="not of this version; begin the federation anew"):
        FederatedPrototypes(EMPTY).merged.restore(state)


def test_a_damaged_list_of_who_was_forgotten_is_not_passed_over(tmp_path):
    strategy = server(tmp_path)
    rounds(strategy, nodes(tmp_path))
    strategy.forget_client("1001")
    (tmp_path / "server" / "forgotten.jsonl").write_text('{"client": "1001"\n')
    with pytest.raises(DataError, match=r"forgotten\.jsonl is damaged.*stands there"):
        server(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("shares", ["x"], r"shares=\['x'\]: expected a list of int"),
        ("shares", [1] * 17, "shares=.*expected at most 16 of 64 letters"),
        ("replaces", ["x" * 65], "replaces=.*expected at most 16 of 64 letters"),
    ],
)
def test_lives_that_no_client_has_are_refused(tmp_path, key, value, message):
    client = PrototypeClient(load, EMPTY, states=StatesOnDisk(tmp_path))

    class Wrong(InProcessGrid):
        def _answer(self, message: Message) -> Message:
            reply = super()._answer(message)
            reply.content["header-0"][key] = value
            return reply

    strategy = FederatedPrototypes(EMPTY, Options(evaluate=0.0))
    with pytest.raises(AllFailedError, match=message):
        rounds(strategy, Wrong(client.app(), 1))
