"""What was forgotten is in no file, in no backup, and does not come back."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context

from protocl import PrototypeMemory
from protocl.cli.main import main
from protocl.errors import ConfigError
from protocl.federation import ClientData, FederatedPrototypes, InProcessGrid, PrototypeClient
from protocl.federation.books.audit import audit
from protocl.federation.books.backup import back_up, restore
from protocl.federation.cli.forget import forget
from protocl.federation.client.state import StatesOnDisk
from protocl.federation.server.sampling import Options
from protocl.federation.server.state import MergedMemory, same_statistics
from protocl.federation.wire.messages import Contribution
from protocl.model.folder import load_model, read_memory, save_model

DIM, CLIENTS = 64, 3
LEVELS = ["mean", "diagonal", "shared", "full"]


def empty(level: str = "mean") -> PrototypeMemory:
    return PrototypeMemory(DIM, level, exact=True)  # type: ignore[arg-type]


def chunk(client: int, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(6, DIM, generator=torch.Generator().manual_seed(100 * client + t))
    return x, torch.tensor([0, 0, 1, 1, 1, 2]) + client


def memory_of(like: PrototypeMemory, *chunks: tuple[int, int]) -> PrototypeMemory:
    memory = like.empty_like()
    for client, t in chunks:
        memory.update(*chunk(client, t))
    return memory


def sums_of(memory: PrototypeMemory) -> list[bytes]:
    """Runs of bytes by which anybody would find the sums of a class in a file."""
    rows = memory.get_buffer("sum").numpy()
    return [row.astype(kind)[:8].tobytes() for row in rows for kind in (np.int32, np.int64)]


def found_in(folder: Path, needles: list[bytes]) -> list[str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    contents = {file.name: file.read_bytes() for file in files}
    return [name for name, content in contents.items() if any(n in content for n in needles)]


class Federation:
    def __init__(self, folder: Path, like: PrototypeMemory) -> None:
        self.like, self.server, self.states = like, folder / "s", StatesOnDisk(folder / "c")
        client = PrototypeClient(self.load, like, states=self.states)
        self.grid = InProcessGrid(client.app(), CLIENTS)

    def load(self, context: Context) -> ClientData:
        return ClientData([chunk(int(context.node_config["partition-id"]), t) for t in range(9)])

    def strategy(self) -> FederatedPrototypes:
        options = Options(evaluate=0.0)
        strategy = FederatedPrototypes(self.like, options, checkpoints=self.server)
        strategy.resume()
        return strategy

    def rounds(self, number: int, strategy: FederatedPrototypes | None = None) -> PrototypeMemory:
        strategy = strategy or self.strategy()
        strategy.start(self.grid, ArrayRecord(), num_rounds=number)
        assert not audit(self.server).faults
        return strategy.memory

    def expected(self, chunks: dict[int, int]) -> PrototypeMemory:
        return memory_of(self.like, *((c, t) for c, n in chunks.items() for t in range(n)))


@pytest.mark.parametrize("level", LEVELS)
def test_a_forgotten_client_is_in_no_file_and_no_backup_brings_it_back(tmp_path, level):
    federation = Federation(tmp_path, empty(level))
    federation.rounds(2)
    back_up(federation.server, tmp_path / "backup")
    shutil.copytree(federation.server, tmp_path / "copy")
    federation.rounds(1)
    keys = (federation.server / "keys.sqlite").read_bytes()
    assert "forgot client 1001: 18 samples less" in forget(federation.server, "client=1001")[0]
    rest = federation.strategy().memory
    assert same_statistics(rest, federation.expected({0: 3, 2: 3}))
    found = audit(federation.server)
    assert (found.forgotten, found.certificates, found.faults) == (3, 1, [])
    assert len((federation.server / "keys.sqlite").read_bytes()) <= len(keys)
    own = [s for t in range(3) for s in sums_of(memory_of(federation.like, (1, t)))]
    whole = sums_of(federation.expected({0: 3, 1: 3, 2: 3})) + sums_of(federation.expected({1: 3}))
    assert found_in(federation.server, own + whole) == []
    restore(federation.server, tmp_path / "backup")
    assert same_statistics(federation.strategy().memory, federation.expected({0: 2, 2: 2}))
    assert same_statistics(federation.rounds(2), federation.expected({0: 4, 2: 4}))
    for file in ("books.sqlite", "keys.sqlite"):  # somebody puts back more than the backup
        shutil.copy(tmp_path / "copy" / file, federation.server / file)
    assert same_statistics(federation.strategy().memory, federation.expected({0: 2, 2: 2}))
    assert same_statistics(federation.rounds(2), federation.expected({0: 4, 2: 4}))
    assert found_in(federation.server, own) == []


def test_the_keys_of_what_was_forgotten_are_destroyed(tmp_path):
    federation = Federation(tmp_path, empty())
    federation.rounds(1)
    strategy = federation.strategy()
    query = "SELECT key FROM ledger WHERE client = '1001'"
    (name,) = strategy._books.db.execute(query).fetchone()
    secret = strategy._books._keys[name].secret
    assert found_in(federation.server, [secret]) == ["keys.sqlite"] or found_in(
        federation.server, [secret]
    ) == ["keys.sqlite-wal"]
    strategy.forget_client("1001")
    assert found_in(federation.server, [secret, name]) == []


@pytest.mark.parametrize("level", ["mean", "diagonal", "full"])
def test_a_forgotten_class_is_in_no_file_and_no_backup_brings_it_back(tmp_path, level):
    federation = Federation(tmp_path, empty(level))
    federation.rounds(2)
    back_up(federation.server, tmp_path / "backup")
    before = federation.strategy().memory.subset(2).copy()
    parts = [memory_of(federation.like, (c, t)) for c in range(3) for t in range(2)]
    needles = sums_of(before) + [s for p in parts if 2 in p for s in sums_of(p.subset(2))]
    forget(federation.server, "class=2")
    assert found_in(federation.server, needles) == []
    after = federation.expected(dict.fromkeys(range(3), 2)).forget(2)
    assert same_statistics(federation.strategy().memory, after)
    found = audit(federation.server)
    assert (found.rewritten > 0, found.faults) == (True, [])
    restore(federation.server, tmp_path / "backup")
    restored = federation.strategy()
    assert 2 not in restored.memory
    expected = federation.expected(dict.fromkeys(range(3), 3)).forget(2)
    assert same_statistics(federation.rounds(1, restored), expected)
    assert found_in(federation.server, needles) == []


def test_a_class_that_came_alone_is_forgotten_at_level_shared():
    like = empty("shared")
    server = MergedMemory(like)
    x = torch.randn(5, DIM, generator=torch.Generator().manual_seed(1))
    alone = like.empty_like().update(x, torch.full((5,), 7))
    server.accept(Contribution(memory_of(like, (0, 0)), "a", 1, "full"), client="a")
    server.accept(Contribution(alone, "b", 1, "full"), client="b")
    server.forget_classes(7)
    assert same_statistics(server.memory, memory_of(like, (0, 0)))
    with pytest.raises(ValueError, match="share a moment at level shared, from 1 clients: a; let"):
        server.forget_classes(0)
    mixed = memory_of(like, (0, 1)).update(x, torch.full((5,), 7))
    with pytest.raises(ValueError, match="class 7 was forgotten, and shares a moment"):
        server.accept(Contribution(mixed, "c", 1, "full"), client="c")
    server.accept(Contribution(alone, "d", 1, "full"), client="d")
    assert same_statistics(server.memory, memory_of(like, (0, 0)))


# -- what a client takes back -------------------------------------------------------------------


def samples_of(like: PrototypeMemory, what: str) -> PrototypeMemory:
    """Of client 1 after two rounds."""
    if what == "samples":
        return memory_of(like, (1, 0))
    whole = like.empty_like()
    for x, y in (chunk(1, t) for t in range(2)):
        taken = y == 2 if what == "a class" else y >= 0
        whole.update(x[taken], y[taken])
    return whole


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("what", ["samples", "a class", "everything"])
def test_a_client_takes_back_what_it_sent(tmp_path, level, what):
    federation = Federation(tmp_path, empty(level))
    federation.rounds(2)
    back_up(federation.server, tmp_path / "backup")
    needles = [s for t in range(2) for s in sums_of(memory_of(federation.like, (1, t)))]
    with federation.states.open("partition-1", federation.like) as state:
        taken = samples_of(federation.like, what)
        left = state.memory.copy().subtract(taken)
        state.withdraw(taken)
    strange = memory_of(federation.like, (1, 0), (1, 1), (1, 2))
    with (
        pytest.raises(ValueError, match=r"more|never|not"),
        federation.states.open("partition-1", empty(level)) as state,
    ):
        state.withdraw(strange)
    federation.grid.online = {1001}
    memory = federation.rounds(1)
    left += memory_of(federation.like, (1, 2))
    expected = federation.expected({0: 2, 2: 2}) + left
    assert same_statistics(memory, expected)
    assert found_in(federation.server, needles) == []
    assert audit(federation.server).certificates == 1
    federation.grid.online = {1000, 1001, 1002}
    restore(federation.server, tmp_path / "backup")
    left += memory_of(federation.like, (1, 3), (1, 4))
    expected = federation.expected({0: 5, 2: 5}) + left
    strategy = federation.strategy()
    strategy.round = 3
    assert same_statistics(federation.rounds(2, strategy), expected)


def test_what_remains_must_be_what_samples_can_have(tmp_path):
    """A client that takes away what it never had is refused, and keeps what it has here."""
    like = empty("full")
    server = FederatedPrototypes(like, Options(evaluate=0.0), checkpoints=tmp_path / "s")
    client = PrototypeClient(lambda context: ClientData([chunk(0, 0)]), like)
    grid = InProcessGrid(client.app(), 1)
    server.start(grid, ArrayRecord(), num_rounds=1)
    with client.states.open("partition-0", like) as state:
        state.memory.get_buffer("second")[:, 0] = -5
        state.withdraw(like.empty_like())
    server.start(grid, ArrayRecord(), num_rounds=1)
    assert server.merged.ledger.outcomes()["rejected"] == 1
    assert same_statistics(server.memory, memory_of(like, (0, 0)))


class Disturbed(InProcessGrid):
    """Something happens while replies are on their way."""

    def __init__(self, grid: InProcessGrid, happens: Callable[[], object]) -> None:
        vars(self).update(vars(grid))
        self.happens = happens

    def send_and_receive(self, *arguments: Any, **options: Any) -> Any:
        replies = super().send_and_receive(*arguments, **options)
        self.happens()
        return replies


def test_a_client_that_is_forgotten_during_a_round_is_out_with_what_it_sends(tmp_path):
    federation = Federation(tmp_path, empty("shared"))
    federation.rounds(1)
    strategy = federation.strategy()
    grid = federation.grid
    federation.grid = Disturbed(grid, lambda: strategy.forget_client("1001"))
    assert same_statistics(federation.rounds(1, strategy), federation.expected({0: 2, 2: 2}))
    assert "client '1001' was forgotten" in [e.reason for e in strategy.merged.ledger][-2]
    federation.grid = grid
    assert same_statistics(federation.rounds(1), federation.expected({0: 3, 2: 3}))
    again = federation.strategy()
    again.forget_client("1001")  # twice changes nothing
    assert (len(again.certificates), len(again.withdrawn)) == (1, 1)


def test_a_forgotten_client_stays_so_at_another_node_and_without_its_state(tmp_path):
    federation = Federation(tmp_path, empty())
    federation.rounds(1)
    forget(federation.server, "client=1001")
    for change in ("another node", "no state"):
        if change == "another node":
            contexts = federation.grid._contexts
            contexts[1009] = contexts.pop(1001)
            federation.grid.online = {1000, 1002, 1009}
        else:  # its first node, where it is known
            contexts[1001] = contexts.pop(1009)
            federation.grid.online = {1000, 1001, 1002}
            for file in federation.states.folder.glob("partition-1*"):
                file.unlink()
        strategy = federation.strategy()
        rounds = strategy.round + 1
        memory = federation.rounds(1, strategy)
        assert same_statistics(memory, federation.expected({0: rounds, 2: rounds})), change


def test_a_clock_that_is_set_back_changes_no_order(tmp_path, monkeypatch):
    class Backwards(datetime):
        year_now = 2031

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            cls.year_now -= 1
            return datetime(cls.year_now, 1, 1, tzinfo=tz)

    monkeypatch.setattr("protocl.federation.books.writing.datetime", Backwards)
    federation = Federation(tmp_path, empty())
    federation.rounds(1)
    forget(federation.server, "client=1001")
    federation.rounds(1)
    forget(federation.server, "client=1002")
    said = federation.strategy().certificates
    assert [one["forgotten"] for one in said] == ["client 1001", "client 1002"]
    assert [one["when"][:4] for one in said] == ["2030", "2029"]  # what the clock said
    assert said[0]["number"] < said[1]["number"]
    assert same_statistics(federation.rounds(1), federation.expected({0: 3}))


# -- operators ----------------------------------------------------------------------------------


def test_a_server_at_work_heeds_a_request_between_two_rounds(tmp_path):
    federation = Federation(tmp_path, empty())
    federation.rounds(1)
    strategy, said = federation.strategy(), []
    with strategy.writing():
        asking = threading.Thread(
            target=lambda: said.extend(forget(federation.server, "client=1001", 60.0))
        )
        asking.start()
        while not list((federation.server / "requests").glob("*.json")):
            pass
        strategy.heed()
        asking.join()
        with pytest.raises(ConfigError, match="'1009' contributed nothing"):
            _ask_and_heed(strategy, federation.server, "client=1009")
        assert "asked the server" in forget(federation.server, "class=0", 0.0)[0]
    assert said == ["forgot client 1001: 6 samples less, 12 remain"]
    assert same_statistics(
        federation.rounds(1, strategy), federation.expected({0: 2, 2: 2}).forget(0)
    )


def _ask_and_heed(strategy: FederatedPrototypes, folder: Path, word: str) -> None:
    from protocl.federation.books.requests import Requests, Wanted

    name = Requests(folder).leave(Wanted.of(word))
    strategy.heed()
    Requests(folder).wait_for(name, 0.0)


def test_the_command(tmp_path, capsys):
    federation = Federation(tmp_path, empty())
    strategy = federation.strategy()
    federation.rounds(1, strategy)
    run = tmp_path / "run with a space"
    shutil.copytree(federation.server, run / "checkpoint")
    strategy.memory.save(run / "memory.safetensors")
    strategy.merged.ledger.save(run / "ledger.jsonl")
    for wrong in ("client=9", "class=99", "client=", "node=3"):
        assert main(["federate", "forget", str(run), wrong]) == 2
    assert main(["federate", "forget", str(run), "client=1001"]) == 0
    assert "forgot client 1001: 6 samples less, 12 remain" in capsys.readouterr().out
    expected = federation.expected({0: 1, 2: 1})
    assert same_statistics(PrototypeMemory.load(run / "memory.safetensors"), expected)
    assert found_in(run, sums_of(memory_of(federation.like, (1, 0)))) == []
    entries = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert [e["outcome"] for e in entries] == ["merged", "forgotten", "merged"]
    assert main(["federate", "forget", str(tmp_path), "client=1001"]) == 2


def model_rows(run: Path) -> dict[int, list[bytes]]:
    """Class -> what the model on disk holds of it, as bytes."""
    memory, _ = read_memory(run / "model")
    arrays = [memory.get_buffer("sum").numpy(), memory.sums.numpy()]
    return {c: [a[i].tobytes() for a in arrays] for i, c in enumerate(memory.classes.tolist())}


@pytest.mark.parametrize("method", ["prototypes method.head=lda", "fedcof"])
def test_the_model_of_a_run_is_without_what_was_forgotten(tmp_path, capsys, method):
    words = f"federation=digits clients=5 rounds=1 method={method}".split()
    assert main(["federate", *words, f"output={tmp_path / 'runs of digits'}"]) == 0
    (run,) = [path.parent for path in tmp_path.rglob("config.yaml")]
    before = model_rows(run)
    assert main(["federate", "forget", str(run), "client=1002"]) == 0
    assert "model is written anew" in " ".join(capsys.readouterr().out.split())
    after = model_rows(run)
    gone = [b for c, rows in before.items() for b in rows if rows != after.get(c)]
    assert len(gone) >= 4
    assert found_in(run, gone) == []
    assert all(rows == before[c] for c, rows in after.items() if rows[0] in before[c])
    model = load_model(run)
    assert model.memory_.total < 1347
    if method == "fedcof":  # of an estimate nothing can be learned
        for what in ({"classes": [3]}, {"X": torch.rand(1, 1, 8, 8).numpy(), "y": [3]}):
            with pytest.raises(ValueError, match=r"an estimate .* by protocl federate forget"):
                model.forget(**what)
        return
    model.partial_fit(torch.rand(2, 1, 8, 8).numpy(), model.classes_[:2])
    save_model(model, run / "model")  # taught since: nobody knows what of it is to stay
    assert main(["federate", "forget", str(run), "client=1001"]) == 0
    assert "since it was changed, a backup was restored, or forgetting was stopped" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_run_of_which_all_is_forgotten_has_no_model(tmp_path, capsys):
    words = ["federation=digits", "clients=2", "rounds=1", "min_clients=1", "partition=iid"]
    assert main(["federate", *words, f"output={tmp_path}"]) == 0
    (run,) = [path.parent for path in tmp_path.rglob("config.yaml")]
    for client in ("client=1000", "client=1001"):
        assert main(["federate", "forget", str(run), client]) == 0
    assert "model is removed, for nothing is left of it" in " ".join(
        capsys.readouterr().out.split()
    )
    assert not (run / "model").exists()


def test_a_forgotten_client_is_known_by_its_node_or_its_state_and_by_nothing_else(tmp_path, capsys):
    federation = Federation(tmp_path, empty())
    federation.rounds(1)
    assert main(["federate", "forget", str(federation.server), "client=1001"]) == 0
    assert "at another node, without that state, it would be a new client" in " ".join(
        capsys.readouterr().out.split()
    )
    without = federation.expected({0: 1, 2: 1})

    def merged_with(node: int, states: StatesOnDisk) -> PrototypeMemory:
        """What is merged after a round in which the client is this node, with these states."""
        data = ClientData([chunk(1, 0)])
        client = PrototypeClient(lambda _: data, federation.like, states=states)
        strategy = federation.strategy()
        grid = InProcessGrid(client.app(), 1, first=node)
        strategy.start(grid, ArrayRecord(), num_rounds=1)
        return strategy.memory

    states = tmp_path / "c"
    shutil.copy(states / "partition-1.safetensors", states / "partition-7.safetensors")
    assert same_statistics(merged_with(1, StatesOnDisk(tmp_path / "lost")), without)
    assert same_statistics(merged_with(7, federation.states), without)
    with_it = federation.expected({0: 1, 1: 1, 2: 1})
    assert same_statistics(merged_with(8, StatesOnDisk(tmp_path / "new")), with_it)
