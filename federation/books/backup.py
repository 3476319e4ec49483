"""Backups of the books, made while they are written, and their way back; keys are in none."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from filelock import FileLock, Timeout

from protocl.errors import ConfigError, DataError, writing_to
from protocl.federation.books.books import FILE, KEY_FILE, LOCK_FILE
from protocl.federation.books.database import (
    BOOKS,
    VERSION,
    NoPlaceError,
    connect,
    connect_written,
    leave_nothing_behind,
    named,
)
from protocl.io.atomic import atomic_path

_CHECKPOINT = "checkpoint"  # the folder of the books within that of a run

GIVE_ROOM = "nothing is restored; give it room, and rights to write, and restore once more"
"""What to do where books are to be restored and cannot be."""


def folder_of_books(folder: Path) -> Path:
    """Where the books of a run, or of a deployed server, lie: in ``folder`` or its checkpoint.

    Raises:
        ConfigError: in neither.
    """
    for place in (folder, folder / _CHECKPOINT):
        if (place / FILE).exists():
            return place
    raise ConfigError(
        f"{folder} has no books: neither {FILE} nor {_CHECKPOINT}/{FILE}; give the folder of a "
        "federated run, or the server's output. Statistics under masks (method=protected) have "
        "none, and checkpoints of before there were books become some when the run is resumed"
    )


def back_up(folder: Path, file: Path) -> None:
    """Copy the books to ``file``, as they are between two rounds; the keys are not in it.

    Raises:
        ConfigError: there are no books, or there is such a file.
        DataError: the books are damaged, or empty, or one of the places cannot be written to.
    """
    source = folder_of_books(folder) / FILE
    if file.exists():
        raise ConfigError(f"{file} is there already; name another file, or remove it")
    with (
        closing(connect_written(source)) as books,
        writing_to(file, "give it room, and a folder that may be written to, or name another file"),
        atomic_path(file) as temporary,
        closing(sqlite3.connect(temporary)) as copy,
        named(source),
    ):
        books.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")


def restore(folder: Path, file: Path) -> None:
    """Put a backup in the place of the books; what was forgotten since stays forgotten.

    Args:
        folder: of the books, with their keys and their list of who was forgotten, which stay.
        file: the backup; it is not changed.

    Raises:
        ConfigError: somebody is writing the books, or the backup is of another version.
        DataError: the backup is damaged, the keys are not there, or nothing may be written.
    """
    place = place_of_keys(folder)
    if (place / FILE).exists() and file.exists() and file.samefile(place / FILE):
        raise ConfigError(f"{file} is the books themselves; give a backup of them")
    with writing_to(place, GIVE_ROOM):
        lock = FileLock(place / LOCK_FILE)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(f"{place} is in use by another process; end it first") from error
        try:
            _restore(place / FILE, file)
        finally:
            lock.release()


def place_of_keys(folder: Path) -> Path:
    """Where books of a run, or of a deployed server, belong, whether they are there or lost.

    Raises:
        DataError: their keys are not there.
    """
    place = folder if (folder / KEY_FILE).exists() else folder / _CHECKPOINT
    if not (place / KEY_FILE).exists():
        raise DataError(
            f"{folder} has no {KEY_FILE}, without which no backup can be read; put it there first"
        )
    return place


def _restore(books: Path, file: Path) -> None:
    with closing(_checked(file)) as source, closing(_opened(books)) as target, named(books):
        generation = _generation(target)
        source.backup(target)
        # Whoever read the books before cannot go on writing them.
        later = json.dumps(max(generation, _generation(target)) + 1)
        target.execute("UPDATE meta SET value = ? WHERE name = 'generation'", (later,))
        leave_nothing_behind(target)


def _opened(path: Path) -> sqlite3.Connection:
    """The books that are to be replaced; new ones where they are lost or damaged."""
    try:
        return _readable(path)
    except NoPlaceError:  # they may be well
        raise
    except (DataError, ConfigError):
        for left in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
            left.unlink(missing_ok=True)
        return connect(path, BOOKS)


def _readable(path: Path) -> sqlite3.Connection:
    books = connect(path, BOOKS)
    try:
        with named(path):
            _generation(books)
    except DataError:
        books.close()
        raise
    return books


def _generation(books: sqlite3.Connection) -> int:
    row = books.execute("SELECT value FROM meta WHERE name = 'generation'").fetchone()
    return 0 if row is None else int(row[0])


def _checked(file: Path) -> sqlite3.Connection:
    """A backup that is whole."""
    if not file.is_file():
        raise ConfigError(f"{file}: there is no such backup")
    backup = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)
    try:
        (found,) = backup.execute("PRAGMA quick_check").fetchone()
        (version,) = backup.execute("PRAGMA user_version").fetchone()
        if found == "ok" and version == VERSION and _generation(backup):
            return backup
    except sqlite3.DatabaseError as error:
        found, version = str(error), VERSION
    backup.close()
    if version != VERSION:
        raise ConfigError(f"{file} is of format {version}; expected books of format {VERSION}")
    raise DataError(f"{file} is no backup of books, or damaged ({found}); restore another one")
