"""What an operator meets: backups that come back, keys of another day, whoever was stopped."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest
from flwr.app import ArrayRecord

from protocl.cli.main import main
from protocl.errors import ConfigError, DataError
from protocl.federation import FederatedPrototypes
from protocl.federation.books.audit import audit
from protocl.federation.books.backup import back_up, restore
from protocl.federation.books.books import Books
from protocl.federation.books.database import leave_nothing_behind
from protocl.federation.books.requests import Requests, Wanted
from protocl.federation.cli.forget import forget
from protocl.federation.edges.certificates import certificates
from protocl.federation.edges.door import EdgeDoor
from protocl.federation.robust.rules import RobustMerge
from protocl.federation.server.sampling import Options
from protocl.federation.server.state import same_statistics
from protocl.federation.wire.messages import Contribution
from protocl.federation.wire.validation import RejectedError
from protocl.io.checkpoint import CheckpointFolder
from tests.federation.books.test_books import empty as small
from tests.federation.books.test_books import play, server
from tests.federation.books.test_forgetting import (
    Federation,
    empty,
    found_in,
    memory_of,
    sums_of,
)


def test_a_backup_is_restored_without_what_was_forgotten_and_no_round_is_needed(tmp_path):
    federation = Federation(tmp_path, empty())
    federation.rounds(1)
    back_up(federation.server, tmp_path / "b")
    forget(federation.server, "client=1001")
    forget(federation.server, "class=0")
    assert main(["federate", "restore", str(federation.server), str(tmp_path / "b")]) == 0
    found = audit(federation.server)
    assert (found.faults, found.samples) == ([], federation.strategy().memory.total)


@pytest.mark.parametrize("what", ["client=1001", "class=1"])
def test_who_was_stopped_after_the_list_and_before_the_books_is_ended_by_the_next(
    tmp_path, monkeypatch, what
):
    federation = Federation(tmp_path, empty())
    federation.rounds(1)
    monkeypatch.setattr(FederatedPrototypes, "_write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        forget(federation.server, what)
    monkeypatch.undo()
    secrets = federation.server / "keys.sqlite"
    before = secrets.read_bytes()
    federation.strategy()
    assert audit(federation.server).certificates == 1
    assert not audit(federation.server).faults
    assert secrets.read_bytes() != before


def test_keys_of_another_day_are_refused_and_nothing_is_lost(tmp_path):
    federation = Federation(tmp_path, empty())
    federation.rounds(1)
    keys, old = federation.server / "keys.sqlite", tmp_path / "old"
    shutil.copy(keys, old)
    expected = federation.rounds(1)
    newest = shutil.copy(keys, tmp_path / "newest")
    shutil.copy(old, keys)
    with pytest.raises(DataError, match=r"does not hold 3 keys .*put the newest of both files"):
        federation.strategy()
    shutil.copy(newest, keys)
    assert same_statistics(federation.strategy().memory, expected)
    Federation(tmp_path / "other", empty()).rounds(1)
    back_up(tmp_path / "other" / "s", tmp_path / "of another federation")
    words = ["federate", "restore", str(federation.server), str(tmp_path / "of another federation")]
    assert main(words) == 3
    assert same_statistics(federation.strategy().memory, expected)  # as it was
    assert not audit(federation.server).faults


def test_a_client_of_a_robust_federation_is_forgotten(tmp_path):
    federation = Federation(tmp_path, empty())
    rule = RobustMerge("geometric_median")
    strategy = FederatedPrototypes(
        federation.like, Options(evaluate=0.0), checkpoints=federation.server, merge=rule
    )
    strategy.start(federation.grid, ArrayRecord(), num_rounds=1)
    said = forget(federation.server, "client=1001")
    assert said[0] == "forgot client 1001: 6 samples less, 12 remain"
    assert found_in(federation.server, sums_of(memory_of(federation.like, (1, 0)))) == []
    assert not audit(federation.server).faults


def test_whatever_page_is_damaged_audit_and_server_say_so(tmp_path):
    whole = server(tmp_path / "whole", small())
    play(whole, 1)
    whole._books.close()
    content = (tmp_path / "whole/books.sqlite").read_bytes()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    said: list[str] = []
    for page in range(1, len(content) // 4096):
        here = page * 4096 + 8
        damaged = content[:here] + b"\xa5" * 4088 + content[here + 4088 :]
        (tmp_path / "cut/books.sqlite").write_bytes(damaged)
        try:
            assert audit(tmp_path / "cut").faults == []
        except DataError as error:
            said.append(str(error))
            with suppress(DataError):  # an index that is not read harms nobody yet
                server(tmp_path / "cut", small()).resume()
        else:  # what was damaged is the room of an empty table
            strategy = server(tmp_path / "cut", small())
            strategy.resume()
            assert same_statistics(strategy.memory, whole.memory)
    assert len(said) > 6
    assert all(re.search(r"books\.sqlite is damaged: .*; restore a backup", s) for s in said)


def test_the_books_themselves_are_no_backup(tmp_path):
    play(server(tmp_path, small()), 1)
    with pytest.raises(ConfigError, match="is the books themselves"):
        restore(tmp_path, tmp_path / "books.sqlite")


def test_a_request_that_is_none_is_put_aside_and_the_server_goes_on(tmp_path, caplog):
    strategy = server(tmp_path, small())
    play(strategy, 1)
    folder = tmp_path / "requests"
    folder.mkdir()
    for name, text in (("a", "{"), ("b", "[1]"), ("c", '{"kind": "node", "name": "1"}')):
        (folder / f"{name}.json").write_text(text)
    strategy.heed()
    assert sorted(file.name for file in folder.iterdir()) == ["a.refused", "b.refused", "c.refused"]
    assert caplog.text.count("is no request: ") == 3


def test_a_reason_that_quotes_half_a_character_stops_no_round(tmp_path):
    """JSON within a message can hold it; neither the books nor a message to the client can."""
    release = {"client": "x", "lives": ["a"], "number": 1, "source": "\ud800", "target": "e"}
    text = json.dumps({"release": release, "signature": "00"})
    sent = Contribution(small(), "life", 1, "full", release=text)
    strategy = server(tmp_path, small())
    with pytest.raises(RejectedError) as refusal:
        EdgeDoor("e0", {"e1": bytes(32)})(sent)  # type: ignore[arg-type]
    strategy.merged.refuse(refusal.value, client="1", round_number=1)
    strategy._save(1)
    assert "edge '\\ud800' did not sign" in next(iter(strategy.merged.ledger)).reason
    assert strategy.merged.known.refused["1"].encode()


def test_who_was_stopped_before_the_first_round_was_written_begins_anew(tmp_path):
    books = Books(tmp_path, small())
    books._connect()
    books.close()
    strategy = server(tmp_path, small())
    assert not strategy.resume()
    play(strategy, 1)
    strategy._books.close()
    (tmp_path / "books.sqlite").write_bytes(b"")  # not stopped: there are keys of what was in it
    with pytest.raises(DataError, match="is empty"):
        server(tmp_path, small()).resume()


def test_a_reader_in_the_way_ends_no_run_and_keys_are_destroyed_later(tmp_path, monkeypatch):
    def impatient(connection: sqlite3.Connection) -> None:
        leave_nothing_behind(connection, 0.05)

    monkeypatch.setattr("protocl.federation.books.books.leave_nothing_behind", impatient)
    federation = Federation(tmp_path, empty())
    strategy = federation.strategy()
    federation.rounds(1, strategy)
    strategy._books.db.execute("PRAGMA busy_timeout=50")
    with closing(sqlite3.connect(federation.server / "books.sqlite")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM ledger").fetchone()
        requests = Requests(federation.server)
        name = requests.leave(Wanted("client", "1001"))
        strategy.heed()
        with pytest.raises(ConfigError, match=r"since another process reads .* end it and"):
            requests.wait_for(name, 0.0)
        strategy.start(federation.grid, ArrayRecord(), num_rounds=1)
        assert (federation.server / "books.sqlite-wal").stat().st_size
    federation.rounds(1, strategy)
    assert same_statistics(strategy.memory, federation.expected({0: 3, 2: 3}))
    query = "SELECT value FROM meta WHERE name = 'destroying'"
    assert strategy._books.db.execute(query).fetchone() == ("0",)


def test_a_root_forgets_edges_and_takes_no_client_for_one(tmp_path, capsys):
    """Their names look alike."""
    root = FederatedPrototypes(small(), Options(evaluate=0.0), checkpoints=tmp_path, rows=True)
    play(root, 1)
    root._books.close()
    words = ["federate", "forget", str(tmp_path)]
    assert main([*words, "client=Ä 1"]) == 2
    assert "forget a client at its edge" in " ".join(capsys.readouterr().err.split())
    assert main([*words, "edge=Ä 1"]) == 0
    assert "forgot edge Ä 1: 12 samples less" in capsys.readouterr().out
    assert not audit(tmp_path).faults
    play(server(tmp_path / "no root", small()), 1)
    assert main(["federate", "forget", str(tmp_path / "no root"), "edge=Ä 1"]) == 2


def test_names_with_brackets_are_printed_as_they_are(tmp_path, capsys):
    for name in ("[/]", "[red]x"):
        assert main(["federate", "block", str(tmp_path), f"node={name}"]) == 0
        assert name in capsys.readouterr().out


def test_a_backup_of_which_nothing_can_be_made_leaves_the_books_as_they_are(tmp_path, capsys):
    """Without contributions no sum can be made anew of them."""
    folder = tmp_path / "with a space, and ü"
    play(server(folder, small(), keep=False), 1)
    back_up(folder, tmp_path / "b")
    forget(folder, "class=1")
    expected = audit(folder)
    assert main(["federate", "restore", str(folder), str(tmp_path / "b")]) == 3
    assert "restore a newer backup" in " ".join(capsys.readouterr().err.split())
    assert audit(folder) == expected


def test_checkpoints_of_before_do_not_outlive_who_was_stopped_on_the_way_to_books(
    tmp_path, monkeypatch
):
    plain = server(None, small())
    play(plain, 1)
    state = {"round": 1, "traffic": [], **plain._state()}
    CheckpointFolder(tmp_path).save(1, state, {})
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "discard", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            server(tmp_path, small()).resume()
    assert list(tmp_path.glob("*.ckpt"))
    again = server(tmp_path, small())
    assert again.resume()
    assert same_statistics(again.memory, plain.memory)
    assert not [*tmp_path.glob("*.ckpt"), *tmp_path.rglob("*.piece")]


def refuse_to_write(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the system behave as on a read-only disk, whoever runs the tests."""
    mkdir, opened = os.mkdir, os.open

    def refused(path: str | os.PathLike[str]) -> None:
        if os.fspath(path).startswith(os.fspath(folder)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))

    def no_folder(path, *arguments, **more):
        refused(path)
        mkdir(path, *arguments, **more)

    def no_file(path, flags, *arguments, **more):
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            refused(path)
        return opened(path, flags, *arguments, **more)

    monkeypatch.setattr(os, "mkdir", no_folder)
    monkeypatch.setattr(os, "open", no_file)


def test_where_nothing_may_be_written_commands_say_where_and_what_to_do(
    tmp_path, monkeypatch, capsys
):
    folder, backup = tmp_path / "s", tmp_path / "b"
    play(server(folder, small()), 1)
    back_up(folder, backup)
    expected = audit(folder)
    with monkeypatch.context() as patch:
        refuse_to_write(patch, folder)
        for words, then in (
            (["restore", str(folder), str(backup)], "nothing is restored; give it room"),
            (["block", str(folder), "node=1"], "the same nodes are blocked as before; give it"),
            (["backup", str(folder), str(folder / "b")], "or name another file"),
        ):
            assert main(["federate", *words]) == 3
            said = " ".join(capsys.readouterr().err.split())
            assert re.search(rf"{folder}.* cannot be written to: Read-only file system; .*", said)
            assert then in said
        with pytest.raises(DataError, match="cannot be written to: Read-only"):
            restore(folder, backup)
    assert audit(folder) == expected


def test_books_that_cannot_be_opened_now_are_not_removed_for_a_backup(tmp_path):
    """They may be well, and the disk is full."""
    play(server(tmp_path / "s", small()), 1)
    back_up(tmp_path / "s", tmp_path / "b")
    books = tmp_path / "s/books.sqlite"
    books.rename(tmp_path / "kept")
    books.mkdir()  # cannot be opened
    with pytest.raises(DataError, match="cannot be read or written: unable to open"):
        restore(tmp_path / "s", tmp_path / "b")
    assert books.is_dir()


def test_what_cannot_be_written_after_a_restore_brings_the_books_before_back(tmp_path, monkeypatch):
    play(strategy := server(tmp_path / "s", small()), 1)
    back_up(tmp_path / "s", tmp_path / "b")
    play(strategy, 2)
    expected = audit(tmp_path / "s")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_room(*_):
        raise full

    monkeypatch.setattr("protocl.federation.cli.forget.write_outputs", no_room)
    assert main(["federate", "restore", str(tmp_path / "s"), str(tmp_path / "b")]) == 3
    assert audit(tmp_path / "s") == expected


@pytest.mark.parametrize("damage", ["first row", "all tables"])
def test_books_that_open_and_cannot_be_read_are_replaced_by_a_backup(tmp_path, damage):
    play(server(tmp_path, small()), 1)
    back_up(tmp_path, tmp_path / "b")
    with closing(sqlite3.connect(tmp_path / "books.sqlite")) as books:
        if damage == "all tables":
            books.execute("DROP TABLE meta")
            books.commit()
        else:
            query = "SELECT rootpage FROM sqlite_master WHERE name = 'meta'"
            (page,) = books.execute(query).fetchone()
            books.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if damage == "first row":
        content = bytearray((tmp_path / "books.sqlite").read_bytes())
        content[(page - 1) * 4096 : page * 4096] = b"\xa5" * 4096
        (tmp_path / "books.sqlite").write_bytes(content)
    restore(tmp_path, tmp_path / "b")
    assert not audit(tmp_path).faults


# -- folders of every kind -----------------------------------------------------------------------


def of_kind(kind: str, folder: Path) -> None:
    """A folder of books of which nothing can be read."""
    file = folder / "books.sqlite"
    if kind in ("no run", "absent"):
        (folder.mkdir if kind == "no run" else str)()
        return
    play(strategy := server(folder, small()), 1)
    strategy._books.close()
    if kind == "empty":
        file.write_bytes(b"")
    elif kind == "no database":
        file.write_bytes(b"\xa5" * 9000)
    elif kind == "a folder":
        file.unlink()
        file.mkdir()
    else:
        with closing(sqlite3.connect(file)) as books:
            books.executescript(_CHANGES[kind])


_ROW = (
    "INSERT INTO ledger SELECT max(number) + 1, 0, '', 'certificate', 0, '', 0, '', '%s', NULL, "
    "NULL, 'certificate', x'', x'', x'', 0 FROM ledger"
)
_CHANGES = {
    "format 1": "PRAGMA user_version = 1",
    "no rows": "DELETE FROM meta",
    "other tables": "DROP TABLE meta",
    "half a certificate": _ROW % '{"forgotten": "class 1"}',
    "no certificate": _ROW % "[1]",
}


@pytest.mark.parametrize(
    ("kind", "status", "text"),
    [
        ("no run", 2, "has no books"),
        ("absent", 2, "has no books"),
        ("format 1", 2, "is of format 1; protocl"),
        ("empty", 3, "is empty: no round was written"),
        ("no rows", 3, "has no rows: no round was written"),
        ("no database", 3, "is damaged: file is not a database"),
        ("a folder", 3, "cannot be read or written: unable to open"),
        ("other tables", 3, "is not what protocl writes: no such table: meta"),
        ("half a certificate", 3, "row 5 of the ledger is no certificate"),
        ("no certificate", 3, "row 5 of the ledger is no certificate"),
    ],
)
def test_certificates_and_backups_of_any_folder_end_with_a_sentence(
    tmp_path, capsys, kind, status, text
):
    folder = tmp_path / "with a space, and ü"
    of_kind(kind, folder)
    files = {f: f.read_bytes() for f in folder.glob("books.sqlite") if f.is_file()}
    words = [["certificates", str(folder)]]
    if not kind.endswith("certificate"):  # of those a backup is whole, and says the same
        words.append(["backup", str(folder), str(tmp_path / "b")])
    for more in words:
        assert main(["federate", *more]) == status
        assert text in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "b").exists()
    assert kind != "empty" or all(f.read_bytes() == was for f, was in files.items())


def test_certificates_are_read_without_keys(tmp_path):
    strategy = server(tmp_path, small())
    play(strategy, 1)
    strategy._books.close()
    forget(tmp_path, "class=1")
    (tmp_path / "keys.sqlite").unlink()
    (done,) = certificates(tmp_path)
    assert (done.what, done.pending) == ("classes 1", ())
    assert not (tmp_path / "keys.sqlite").exists()
