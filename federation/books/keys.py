"""The keys of contributions, in a file apart from the books and from their backups."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from protocl.errors import DataError
from protocl.federation.books.database import KEYS, connect, leave_nothing_behind, transaction
from protocl.federation.books.sealing import NAME, Key

DESTROYED = "destroyed.txt"


class KeyFile:
    """Keys by name.

    A key that is destroyed is not in the file nor in its log. Its name, which says nothing, stands
    in a list beside it, so that it is destroyed once more where an older file is put back.

    Args:
        path: the file; made with the first key.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._destroyed = path.with_name(DESTROYED)
        self._connection = connect(path, KEYS)
        self._destroy_again()

    def add(self, keys: Sequence[Key]) -> None:
        """Keep keys; they are on disk after it."""
        if keys:
            with transaction(self._connection):
                self._connection.executemany("INSERT INTO keys VALUES (?, ?)", keys)

    def find(self, name: bytes) -> Key | None:
        """The key of a name; None where it was destroyed."""
        row = self._connection.execute("SELECT secret FROM keys WHERE name = ?", (name,)).fetchone()
        return None if row is None else Key(name, row[0])

    def __getitem__(self, name: bytes) -> Key:
        """The key of a name.

        Raises:
            DataError: it is not there.
        """
        key = self.find(name)
        if key is None:
            raise DataError(
                f"{self.path} does not hold the key of a row of the books: it is another one's, or "
                "older than they are; put the file that belongs to them in its place"
            )
        return key

    def keep(self, kept: Iterable[bytes]) -> None:
        """Destroy all keys but some: those of what is forgotten, and of rows that were given up."""
        db = self._connection
        db.execute("CREATE TEMP TABLE IF NOT EXISTS kept (name BLOB PRIMARY KEY)")
        db.execute("DELETE FROM kept")
        db.executemany("INSERT OR IGNORE INTO kept VALUES (?)", ((name,) for name in kept))
        gone = db.execute("SELECT name FROM keys WHERE name NOT IN (SELECT name FROM kept)")
        self._note(name.hex() for (name,) in gone.fetchall())
        with transaction(db):
            db.execute("DELETE FROM keys WHERE name NOT IN (SELECT name FROM kept)")
        leave_nothing_behind(db)

    def _note(self, names: Iterable[str]) -> None:
        """Write the names of keys that are about to be destroyed, and wait for the disk."""
        with self._destroyed.open("a", encoding="ascii") as file:
            file.writelines(f"{name}\n" for name in names)
            file.flush()
            os.fsync(file.fileno())

    def require_destroyed(self, names: Iterable[bytes]) -> None:
        """Refuse to go on without keys that were not destroyed.

        Raises:
            DataError: how many there are, and what to do.
        """
        missing = set(names)
        if missing and (lost := missing.difference(self._noted())):
            raise DataError(
                f"{self.path} does not hold {len(lost)} keys of the books, which {DESTROYED} does "
                "not list as destroyed either: it is older than they are, or of other books; put "
                "the newest of both files in their place, or restore a backup that belongs to them"
            )

    def _noted(self) -> list[bytes]:
        """Names of all keys that were ever destroyed."""
        if not self._destroyed.exists():
            return []
        lines = self._destroyed.read_text(encoding="ascii").splitlines()
        return [bytes.fromhex(line) for line in lines if len(line) == 2 * NAME]

    def _destroy_again(self) -> None:
        names = self._noted()
        if not names:
            return
        with transaction(self._connection):
            query = "DELETE FROM keys WHERE name = ?"
            number = self._connection.executemany(query, ((name,) for name in names)).rowcount
        if number > 0:
            leave_nothing_behind(self._connection)

    def close(self) -> None:
        """Release the file."""
        self._connection.close()
