"""Databases of the books: how they are opened, written whole or not at all, and left clean."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocl.errors import ConfigError, DataError
from protocl.io.provenance import installed_version

VERSION = 2
"""Of the tables below."""

BOOKS = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE ledger (
    number INTEGER PRIMARY KEY, round INTEGER NOT NULL, client TEXT NOT NULL,
    outcome TEXT NOT NULL, bytes INTEGER NOT NULL, epoch TEXT NOT NULL, seq INTEGER NOT NULL,
    kind TEXT NOT NULL, reason TEXT NOT NULL, key BLOB, labels BLOB, first TEXT NOT NULL,
    seal BLOB NOT NULL, mark BLOB NOT NULL, chain BLOB NOT NULL, kept INTEGER NOT NULL
);
CREATE INDEX ledger_of_client ON ledger (client) WHERE kept = 0 AND first = 'merged';
CREATE INDEX ledger_of_round ON ledger (round, outcome);
CREATE TABLE contributions (
    number INTEGER PRIMARY KEY, client TEXT NOT NULL, key BLOB NOT NULL, data BLOB NOT NULL
);
CREATE INDEX contributions_of_client ON contributions (client);
CREATE TABLE sums (class_id INTEGER PRIMARY KEY, key BLOB NOT NULL, data BLOB NOT NULL);
CREATE TABLE tables (
    name TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (name, key)
) WITHOUT ROWID;
CREATE TABLE traffic (
    round INTEGER NOT NULL, client TEXT NOT NULL, kind TEXT NOT NULL, direction TEXT NOT NULL,
    bytes INTEGER NOT NULL
);
"""

KEYS = """
CREATE TABLE keys (name BLOB PRIMARY KEY, secret BLOB NOT NULL) WITHOUT ROWID;
"""

_CACHE = "cache_size=-16000"  # KiB


class NoPlaceError(DataError):
    """The system does not let a file be read or written, which may be well."""


class StillReadError(DataError):
    """What was deleted is in a log until another process that reads it ends."""


_PATIENCE = 30.0
"""Seconds to wait for others that read or write the file."""


def connect(path: Path, schema: str) -> sqlite3.Connection:
    """Open a database, made with ``schema`` where there is none; it is on disk when it says so.

    Raises:
        DataError: the file is damaged, or no database.
        ConfigError: another version of protocl wrote it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with named(path):
        # Ray's engine runs the server in a thread of its own; one thread at a time uses it.
        connection = sqlite3.connect(
            path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
        )
    try:
        with named(path):
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", _CACHE):
                connection.execute(f"PRAGMA {pragma}")
            _require_version(connection, path, schema)
    except (DataError, ConfigError):
        connection.close()
        raise
    return connection


_NOTHING_WRITTEN = "no round was written to it; restore a backup, or begin anew"


def connect_written(path: Path) -> sqlite3.Connection:
    """Open books that are there, and in which a round was written.

    Raises:
        DataError: nothing was written to them; and see :func:`connect`.
        ConfigError: see there.
    """
    if not path.stat().st_size:  # in which tables would be made
        raise DataError(f"{path} is empty: {_NOTHING_WRITTEN}")
    books = connect(path, BOOKS)
    try:
        with named(path):
            if books.execute("SELECT 1 FROM meta").fetchone():
                return books
        raise DataError(f"{path} has no rows: {_NOTHING_WRITTEN}")
    except DataError:
        books.close()
        raise


def _require_version(connection: sqlite3.Connection, path: Path, schema: str) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0 and not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        with transaction(connection):
            for statement in schema.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={VERSION}")
    elif version != VERSION:
        raise ConfigError(
            f"{path} is of format {version}; protocl {installed_version('protocl')} reads format "
            f"{VERSION}: continue with the protocl that wrote it, or begin in another folder"
        )


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Say of which file it is where SQLite fails in the block.

    Raises:
        NoPlaceError: the file cannot be read or written.
        DataError: it is damaged, or none of these.
    """
    try:
        yield
    except sqlite3.OperationalError as error:  # a full disk, a folder that may not be written to
        if "no such " in str(error):
            raise DataError(f"{path} is not what protocl writes: {error}") from error
        raise NoPlaceError(
            f"{path} cannot be read or written: {error}; nothing was changed in it. It needs room, "
            "and a folder that may be written to, for reading too: give it, or work on a copy"
        ) from error
    except (sqlite3.DatabaseError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}; restore a backup") from error


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that the block writes, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def leave_nothing_behind(connection: sqlite3.Connection, patience: float = _PATIENCE) -> None:
    """Empty the write-ahead log, in which what was deleted still stands.

    Raises:
        StillReadError: another process goes on reading for longer than ``patience`` seconds.
    """
    end = time.monotonic() + patience
    while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        if time.monotonic() > end:
            (_, _, path), *_ = connection.execute("PRAGMA database_list").fetchall()
            raise StillReadError(
                f"{path}-wal still holds what was deleted, since another process reads {path}; "
                "end it and forget again"
            )
        time.sleep(0.05)
