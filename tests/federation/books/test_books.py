"""Books on disk say what the same server in memory says, and change whole or not at all."""

from __future__ import annotations

import itertools
import re
import shutil
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from protocl import PrototypeMemory
from protocl.cli.main import main
from protocl.errors import ConfigError, DataError
from protocl.federation import FederatedPrototypes
from protocl.federation.books.audit import audit
from protocl.federation.books.backup import back_up, restore
from protocl.federation.books.books import Books
from protocl.federation.server.resumable import KeepsBooks
from protocl.federation.server.state import same_statistics
from protocl.federation.wire.messages import Contribution
from protocl.federation.wire.traffic import Entry, Traffic
from protocl.io.checkpoint import CheckpointFolder
from tests.federation.stopping import stopped_at

DIM, CLIENTS = 4, 3


def empty(level: str = "mean", exact: bool = True) -> PrototypeMemory:
    return PrototypeMemory(DIM, level, exact=exact, fingerprint="b")  # type: ignore[arg-type]


def memory_of(seed: int, like: PrototypeMemory, samples: int = 12) -> PrototypeMemory:
    x = torch.randn(samples, DIM, generator=torch.Generator().manual_seed(seed))
    return like.empty_like().update(x, torch.arange(samples) % 3 + seed % 3)


def server(folder: Path | None, like: PrototypeMemory, keep: bool = True) -> FederatedPrototypes:
    return FederatedPrototypes(like, keep_contributions=keep, checkpoints=folder)


def play(strategy: KeepsBooks, number: int, *, clients: int = CLIENTS) -> None:
    """A round in which every client sends once, and one twice, and one is refused."""
    like, merged = strategy.merged.empty, strategy.merged
    for client in range(clients):
        name, seq = f"Ä {client}", merged.known.settled_of(f"Ä {client}").seq + 1
        kind = (
            "full"
            if seq == 1 or ((number + client) % 4 == 0 and merged.keep_contributions)
            else "delta"
        )
        sent = Contribution(
            memory_of(10 * number + client, like), f"life-{client}", seq, kind, {0: "null"}
        )
        for _ in range(2 if client == 0 else 1):
            merged.accept(sent, client=name, round_number=number, size=7)
        strategy.traffic.add(number, name, "train", "up", 7 + client)
    merged.ledger.add(Entry(number, "Ä 9", "failed", reason="42: away"))
    strategy.failed_evaluations.setdefault(number, []).append("no test data")
    strategy.round = number
    strategy._save(number)


def said(strategy: KeepsBooks) -> Any:
    """All that a server knows, in a form that can be compared."""
    state = strategy.merged.state()
    memory = state.pop("_memory")
    parts = {
        client: [
            (p["class_ids"].tolist(), {n: s.tolist() for n, s in p["sums"].items()}) for p in own
        ]
        for client, own in sorted(state.pop("_parts").items())
    }
    known = {n: dict(v) if isinstance(v, dict) else v for n, v in state.pop("known").items()}
    arrays = {name: part.tolist() for name, part in memory.parts().items()}
    traffic = [list(strategy.traffic), strategy.traffic.by_type(), strategy.traffic.total("up", 2)]
    counts = [strategy.merged.ledger.outcomes(n) for n in (None, 1, 2)]
    return arrays, parts, known, state, traffic, counts, strategy.merged.ledger.reasons()


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("level", ["mean", "diagonal", "shared", "full"])
def test_books_give_back_what_a_server_in_memory_knows(tmp_path, level, exact, keep):
    like = empty(level, exact)
    folder = tmp_path / "with a space, and ü"
    kept, plain = server(folder, like, keep), server(None, like, keep)
    for number in (1, 2, 3):
        play(kept, number)
        play(plain, number)
        kept = server(folder, like, keep)
        assert kept.resume()
        assert kept.round == number
        assert said(kept) == said(plain)
        assert kept.failed_evaluations == plain.failed_evaluations
    found = audit(folder)
    assert not found.faults
    assert found.samples == kept.memory.total
    kept_parts = sum(len(kept.merged._kept.of(client)) for client in kept.merged.clients)
    assert found.contributions == (kept_parts if keep else 0)


def test_a_level_of_two_words_comes_back(tmp_path):
    like = empty("full")
    strategy = server(tmp_path, like)
    huge = memory_of(1, like)
    huge.get_buffer("second")[:, 0] = 2**62
    for client in range(4):
        strategy.merged.accept(Contribution(huge, f"e{client}", 1, "full"), client=str(client))
    strategy._save(1)
    again = server(tmp_path, like)
    again.resume()
    assert "second_high" in again.memory.parts()
    assert same_statistics(again.memory, strategy.memory)
    assert not audit(tmp_path).faults


def test_without_a_round_there_are_no_books(tmp_path):
    assert not server(tmp_path / "new", empty()).resume()
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match=r"has no books.*method=protected"):
        audit(tmp_path)


# -- whole or not at all ------------------------------------------------------------------------


def of_books(file: str) -> bool:
    return "/books/" in file and "/tests/" not in file


@pytest.mark.parametrize("change", ["round", "forget"])
def test_a_transaction_that_is_stopped_anywhere_was_written_or_not(tmp_path, change):
    like, step = empty(), 401 if change == "round" else 201
    first = server(tmp_path / "begun", like)
    play(first, 1)
    play(first, 2)
    first._books.close()

    def begun(folder: Path) -> FederatedPrototypes:
        shutil.copytree(tmp_path / "begun", folder)
        strategy = server(folder, like)
        strategy.resume()
        return strategy

    def act(strategy: FederatedPrototypes) -> None:
        if change == "round":
            play(strategy, 3, clients=2)
        else:
            strategy.forget_client("Ä 1")

    plain = server(None, like)
    play(plain, 1)
    play(plain, 2)
    before, done = plain.memory.copy(), plain
    act(done)
    for number in itertools.count():
        folder = tmp_path / str(number)
        strategy = begun(folder)
        act_here = partial(act, strategy)
        stopped = stopped_at(1 + step * number, act_here, of_books)
        strategy._books.close()
        again = server(folder, like)
        again.resume()
        expected = (before, done.memory)
        if change == "forget" and (folder / "forgotten.jsonl").exists():
            expected = (done.memory,)  # what was asked for and written down is done
        assert any(same_statistics(again.memory, one) for one in expected), number
        again._save(3)
        assert not audit(folder).faults
        if not stopped:
            break
    assert number > 2


def test_of_two_who_read_the_same_books_one_can_write(tmp_path):
    like = empty()
    play(server(tmp_path, like), 1)
    first, second, third = (server(tmp_path, like) for _ in range(3))
    first.resume()
    second.resume()
    play(first, 2)
    expected = first.memory.copy()
    for stale in (second, third):  # the third has not even read them
        with pytest.raises(ConfigError, match="another process, or by an earlier run"):
            play(stale, 2)
    again = server(tmp_path, like)
    again.resume()
    assert same_statistics(again.memory, expected)
    with again.writing(), pytest.raises(ConfigError, match="in use by another process"):
        first.forget_client("Ä 1")


def test_a_full_disk_leaves_all_that_was_to_be_written_for_later(tmp_path, monkeypatch):
    like = empty()
    strategy = server(tmp_path, like)
    play(strategy, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Books, "_write_meta", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            play(strategy, 2)
    strategy._save(2)
    again = server(tmp_path, like)
    again.resume()
    assert same_statistics(again.memory, strategy.memory)
    assert not audit(tmp_path).faults


# -- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ("UPDATE ledger SET reason = 'kind' WHERE number = 3", "row 3 of the ledger"),
        ("UPDATE ledger SET outcome = 'rejected' WHERE number = 0", "row 0 of the ledger"),
        ("UPDATE ledger SET mark = x'00' WHERE number = 0", "its mark is not that"),
        ("UPDATE ledger SET outcome = 'replaced' WHERE number = 5", "counts of the ledger"),
        ("DELETE FROM ledger WHERE number = 1", "row 2 of the ledger, or the one before"),
        ("DELETE FROM ledger WHERE number = 9", "head [0-9a-f]+ is not in the chain"),
        ("DELETE FROM contributions WHERE number = 0", "do not add up|its mark is not"),
        ("UPDATE contributions SET data = zeroblob(40) WHERE number = 0", "not what was sealed"),
        ("DELETE FROM sums WHERE class_id = 1", "counts of the ledger are not"),
    ],
)
def test_an_audit_finds_what_was_changed(tmp_path, damage, fault):
    strategy = server(tmp_path, empty())
    play(strategy, 1)
    play(strategy, 2)
    strategy._books.close()
    head = audit(tmp_path).head
    with sqlite3.connect(tmp_path / "books.sqlite") as books:
        assert books.execute(damage).rowcount == 1
    books.close()
    found = audit(tmp_path, head)
    assert found.faults
    assert re.search(fault, "; ".join(found.faults)), found.faults


def test_what_cannot_be_read_is_refused_in_a_sentence(tmp_path):
    like = empty()
    strategy = server(tmp_path, like)
    play(strategy, 1)
    back_up(tmp_path, tmp_path / "b")
    strategy._books.close()
    with pytest.raises(ValueError, match="level is shared here"):
        server(tmp_path, empty("shared")).resume()
    with sqlite3.connect(tmp_path / "books.sqlite") as books:
        books.execute("PRAGMA user_version=7")
    books.close()
    with pytest.raises(ConfigError, match=r"is of format 7; protocl .* reads format 2: continue"):
        server(tmp_path, like).resume()
    (tmp_path / "books.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(DataError, match=r"books\.sqlite is damaged.*restore a backup"):
        server(tmp_path, like).resume()
    restore(tmp_path, tmp_path / "b")
    again = server(tmp_path, like)
    assert again.resume()
    assert same_statistics(again.memory, strategy.memory)
    again._books.close()
    (tmp_path / "keys.sqlite").unlink()
    with pytest.raises(DataError, match=r"keys\.sqlite is missing"):
        server(tmp_path, like).resume()


def test_a_backup_that_is_none_changes_nothing(tmp_path):
    strategy = server(tmp_path, empty())
    play(strategy, 1)
    (tmp_path / "text").write_text("hello")
    sqlite3.connect(tmp_path / "other.sqlite").execute("CREATE TABLE a (b)")
    for name in ("absent", "text", "other.sqlite"):
        with pytest.raises((ConfigError, DataError), match=r"backup|format"):
            restore(tmp_path, tmp_path / name)
    back_up(tmp_path, tmp_path / "b")
    with pytest.raises(ConfigError, match="is there already"):
        back_up(tmp_path, tmp_path / "b")
    with strategy.writing(), pytest.raises(ConfigError, match="in use by another process"):
        restore(tmp_path, tmp_path / "b")
    play(strategy, 2)
    assert not audit(tmp_path).faults


def test_whoever_read_books_that_were_restored_since_cannot_write_them(tmp_path):
    strategy = server(tmp_path, empty())
    play(strategy, 1)
    back_up(tmp_path, tmp_path / "b")
    play(strategy, 2)
    restore(tmp_path, tmp_path / "b")
    with pytest.raises(ConfigError, match="another process"):
        play(strategy, 3)


# -- of before there were books -----------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
def test_checkpoints_of_before_become_books(tmp_path, keep):
    like = empty("full")
    plain = server(None, like, keep)
    for number in range(1, 13):  # so many that contributions of a client were added up
        play(plain, number)
    CheckpointFolder(tmp_path).save(
        12,
        {
            "round": 12,
            "traffic": list(plain.traffic),
            "merged": plain.merged.state(),
            "evaluations": {},
            "failed_evaluations": plain.failed_evaluations,
        },
        {},
    )
    strategy = server(tmp_path, like, keep)
    assert strategy.resume()
    assert strategy.round == 12
    assert said(strategy) == said(plain)
    assert not [*tmp_path.glob("*.ckpt"), *tmp_path.rglob("*.piece")]
    assert not audit(tmp_path).faults
    again = server(tmp_path, like, keep)
    again.resume()
    play(again, 13)
    play(plain, 13)
    assert same_statistics(again.memory, plain.memory)
    assert not audit(tmp_path).faults


# -- what a round costs -------------------------------------------------------------------------


def test_a_round_changes_the_rows_of_those_who_sent_something(tmp_path):
    """Counted in rows: of a hundred clients two send something."""
    strategy = server(tmp_path, empty())
    play(strategy, 1, clients=100)
    db = strategy._books.db
    before = db.total_changes
    play(strategy, 2, clients=2)
    assert db.total_changes - before < 80
    assert strategy.merged._kept.recent == {}
    assert not strategy.traffic.rows


def test_noted_tables_are_saved_however_they_are_changed(tmp_path):
    strategy = server(tmp_path, empty())
    play(strategy, 1)
    known = strategy.merged.known
    known.wants_full |= {"x", "y"}
    known.wants_full.discard("x")
    known._homes.update({"a": "b"})
    known._owners |= {"life": "a"}
    known._lives.setdefault("a", ("life",))
    known._samples["a"] += 2
    del known._homes["Ä 1"]
    strategy._save(2)
    again = server(tmp_path, empty())
    again.resume()
    assert again.merged.known.state() == known.state()
    assert Traffic().by_type() == {}


def test_the_commands(tmp_path, capsys):
    strategy = server(tmp_path / "run/checkpoint", empty())
    play(strategy, 1)
    run, backup = str(tmp_path / "run"), str(tmp_path / "b")
    assert main(["federate", "backup", run, backup]) == 0
    play(strategy, 2)
    assert main(["federate", "audit", run]) == 0
    printed = capsys.readouterr().out
    assert "chain, marks and sum are as they should be" in printed
    head = next(word for word in printed.split() if word.startswith("head="))
    assert main(["federate", "audit", run, head]) == 0
    assert main(["federate", "restore", run, backup]) == 0
    assert main(["federate", "audit", run, head]) != 0
    assert "is not in the chain" in capsys.readouterr().err
    for words in (["audit"], ["backup", run], ["restore", run, backup, "x"], ["audit", run, "y"]):
        assert main(["federate", *words]) == 2


def test_a_sum_in_the_place_of_another_is_found(tmp_path):
    strategy = FederatedPrototypes(
        empty(), checkpoints=tmp_path / "checkpoint", keep_contributions=False
    )
    play(strategy, 1)
    del strategy
    with closing(sqlite3.connect(tmp_path / "checkpoint/books.sqlite")) as books, books:
        (a, b) = books.execute("SELECT class_id, key, data FROM sums LIMIT 2").fetchall()
        for (class_id, *_), (_, key, data) in ((a, b), (b, a)):
            query = "UPDATE sums SET key = ?, data = ? WHERE class_id = ?"
            books.execute(query, (key, data, class_id))
    with pytest.raises(DataError, match="is not what was sealed"):
        audit(tmp_path)


def test_books_whose_keys_cannot_be_opened_are_closed_all_the_same(tmp_path, monkeypatch):
    def full(path: Path) -> None:
        raise DataError(f"{path} cannot be written: the disk is full")

    monkeypatch.setattr("protocl.federation.books.books.KeyFile", full)
    books = Books(tmp_path, empty())
    with pytest.raises(DataError, match="the disk is full"):
        books._connect()
    books.close()  # as when it is thrown away
