"""The server's books: one database beside the keys of what is in it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from protocl.errors import ConfigError, DataError
from protocl.federation.books.database import (
    BOOKS,
    KEYS,
    connect,
    leave_nothing_behind,
    named,
    transaction,
)
from protocl.federation.books.keys import KeyFile
from protocl.federation.books.shelves import ContributionShelf, EntryShelf, certificates_of
from protocl.federation.books.sums import Sums
from protocl.federation.books.writing import Account, Writing
from protocl.federation.wire.statistics import Packed
from protocl.federation.wire.traffic import Row, Traffic
from protocl.memory import PrototypeMemory
from protocl.memory.file import description_of

FILE, KEY_FILE, LOCK_FILE = "books.sqlite", "keys.sqlite", "books.lock"

_SEALED = ("ledger", "contributions", "sums")
"""Tables whose rows name a key."""


class InUseError(ConfigError):
    """Somebody else is writing the books."""


Changed = list[tuple[str, str, str | None]]


class Books:
    """The state of a server on disk, of which each round changes some rows.

    Who wrote last is noted in it: of two that have read the same books only one can write.

    Args:
        folder: of the two files; made with the first round.
        empty: memory without samples of the kind that is merged.

    Attributes:
        path: of the database.
        round: number of rounds finished when they were opened.
    """

    def __init__(self, folder: Path, empty: PrototypeMemory) -> None:
        self.folder, self._empty = folder, empty
        self.path = folder / FILE
        self._lock = FileLock(folder / LOCK_FILE)
        self._db: sqlite3.Connection | None = None
        self._generation = 0
        self._forgotten_classes: frozenset[int] = frozenset()
        self.round = 0
        self._overdue = False  # whether keys wait to be destroyed
        self._lost: list[tuple[int]] = []  # numbers of rows whose keys are destroyed

    @property
    def exist(self) -> bool:
        """Whether something was ever written; who began may have been stopped before."""
        return self.path.exists() and not self._is_blank()

    def close(self) -> None:
        """Release the files."""
        if self._db is not None:
            self._db.close()
            self._keys.close()
            self._db = None

    def __del__(self) -> None:
        self.close()

    # -- reading ----------------------------------------------------------------------------

    def open(self) -> dict[str, Any]:
        """Open what another process, or this one, wrote, and give what is said of it.

        Raises:
            ConfigError: another version of protocl wrote it.
            DataError: it is damaged, or its keys are not there.
        """
        if not (self.folder / KEY_FILE).exists():
            raise DataError(
                f"{self.folder / KEY_FILE} is missing, without which {self.path} cannot be read; "
                "restore it from where the keys are kept, or begin in another folder"
            )
        self._connect()
        meta = self._meta()
        if not meta:
            raise DataError(f"{self.path} is empty; delete it to begin anew, or restore a backup")
        self._generation = int(meta["generation"])
        self._forgotten_classes = frozenset(json.loads(meta["forgotten_classes"]))
        self.round = int(meta["round"])
        if meta["destroying"] != "0":
            # Somebody was stopped on the way, or is at it now.
            with suppress(InUseError), self.held():
                self._destroy()
        return {name: json.loads(value) for name, value in meta.items()}

    def memory(self) -> PrototypeMemory | None:
        """The merged memory; None where the books are older than what was forgotten of it."""
        return self._sums.read(self._keys)

    def table(self, name: str) -> Iterator[tuple[str, Any]]:
        """Keys and values of a table."""
        query = "SELECT key, value FROM tables WHERE name = ?"
        return ((key, json.loads(value)) for key, value in self.db.execute(query, (name,)))

    def unreadable(self) -> list[str]:
        """Clients of whose contributions some can be read no more, as their keys are destroyed.

        Raises:
            DataError: some keys were never destroyed, and are not there.
        """
        self.db.execute("ATTACH ? AS apart", (str(self.folder / KEY_FILE),))
        try:
            lost = "key NOT IN (SELECT name FROM apart.keys)"
            gone = " UNION ".join(
                f"SELECT key FROM {table} WHERE key NOT NULL AND {lost}" for table in _SEALED
            )
            self._keys.require_destroyed(name for (name,) in self.db.execute(gone))
            rows = self.db.execute(f"SELECT number FROM ledger WHERE key NOT NULL AND {lost}")
            self._lost = rows.fetchall()
            query = f"SELECT DISTINCT client FROM contributions WHERE {lost} ORDER BY client"
            return [client for (client,) in self.db.execute(query)]
        finally:
            self.db.execute("DETACH apart")

    def take_up_traffic(self, traffic: Traffic) -> None:
        """Let ``traffic`` begin with the messages in the books."""
        query = "SELECT round, kind, direction, sum(bytes) FROM traffic GROUP BY 1, 2, 3"
        traffic.take_up(self.db.execute(query).fetchall(), self.messages)

    def messages(self) -> Iterator[Row]:
        """Every message, oldest first."""
        return iter(self.db.execute("SELECT * FROM traffic ORDER BY rowid"))

    @property
    def entries(self) -> int:
        """Rows of the ledger, certificates included."""
        return int(self.db.execute("SELECT ifnull(max(number), -1) + 1 FROM ledger").fetchone()[0])

    def certificates(self) -> list[dict[str, Any]]:
        """What was forgotten, oldest first, with the numbers of the rows that say it."""
        return certificates_of(self.db)

    def attach(self, account: Account) -> None:
        """Let an account read from the books what is in them."""
        self._connect()
        account.ledger.older = EntryShelf(self.db, self._keys)
        self._shelf = ContributionShelf(self.db, self._keys)
        account.contributions.shelf = self._shelf

    @property
    def db(self) -> sqlite3.Connection:
        """The database."""
        assert self._db is not None
        return self._db

    # -- writing ----------------------------------------------------------------------------

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from writing; a block within such a block is well.

        Raises:
            InUseError: somebody else is writing.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise InUseError(
                f"{self.folder} is in use by another process, which writes {self.path.name}; wait "
                "for it, or use another folder"
            ) from error
        try:
            yield
        finally:
            self._lock.release()

    def write(
        self, account: Account, traffic: Traffic, meta: Mapping[str, Any],
        kept: Callable[[Packed], Packed],
    ) -> None:  # fmt: skip
        """Write what changed, whole or not at all; it is on disk after it.

        Args:
            account: of which.
            traffic: messages.
            meta: what else is said of the books.
            kept: leaves out of a contribution the classes that are forgotten.

        Raises:
            ConfigError: another process has written the books since they were read.
            StillReadError: it is written, and what was deleted goes with the next time.
        """
        with self.held(), named(self.path):
            self._write(account, traffic, meta, kept)

    def _write(
        self, account: Account, traffic: Traffic, meta: Mapping[str, Any],
        kept: Callable[[Packed], Packed],
    ) -> None:  # fmt: skip
        self._connect()
        forgets = bool(account.forgettings)
        with transaction(self.db):
            self._require_latest()
            # Of what cannot be read not even the labels are left.
            forget = "UPDATE ledger SET key = NULL, labels = NULL WHERE number = ?"
            self.db.executemany(forget, self._lost)
            writing = Writing(self.db, account)
            writing.contribute()
            writing.change()
            if account.forgotten_classes != self._forgotten_classes:
                writing.rewrite(self._keys.__getitem__, kept)
            sums = self._sums.write(account.memory, writing.new_key, self._keys, renew=forgets)
            state = self._certify(writing, account)
            for receipt in account.receipts:
                writing.keep_certificate(receipt)
            self._write_tables(account.tables)
            self._write_traffic(traffic)
            self._write_meta(account, meta, state, forgets or self._overdue)
            self._keys.add(writing.keys)  # without which the rows could not be read
        self._generation, self._lost = self._generation + 1, []
        self._forgotten_classes = account.forgotten_classes
        self._sums.written(sums)
        self._saved(account, traffic)
        self._overdue |= forgets
        if self._overdue:
            self._destroy()

    def _saved(self, account: Account, traffic: Traffic) -> None:
        for client, recent in account.contributions.recent.items():
            self._shelf.note(client, recent)
        if account.forgettings:
            self._shelf.known.clear()
        account.contributions.recent.clear()
        account.ledger.saved()
        traffic.saved(self.messages)
        account.forgettings.clear()
        account.receipts.clear()
        for table in account.tables.values():
            table.changed.clear()

    def _certify(self, writing: Writing, account: Account) -> str:
        """Certificates of what was forgotten; the name of the key of the present digest."""
        meta = self._meta()
        name = json.loads(meta.get("state", '""'))
        for forgetting in account.forgettings:
            before = self._keys.find(bytes.fromhex(name)) if name else None
            after = writing.new_key()
            writing.certify(forgetting, before or after, after)
            name = after.name.hex()
        return str(name)

    def _write_tables(self, tables: Mapping[str, Any]) -> None:
        rows: Changed = [
            (name, str(key), _value(table, key))
            for name, table in tables.items()
            for key in table.changed
        ]
        gone = ((name, key) for name, key, value in rows if value is None)
        self.db.executemany("DELETE FROM tables WHERE name = ? AND key = ?", gone)
        there = (row for row in rows if row[2] is not None)
        self.db.executemany("INSERT OR REPLACE INTO tables VALUES (?, ?, ?)", there)

    def _write_traffic(self, traffic: Traffic) -> None:
        self.db.executemany("INSERT INTO traffic VALUES (?, ?, ?, ?, ?)", traffic.rows)

    def _write_meta(
        self, account: Account, more: Mapping[str, Any], state: str, destroying: bool
    ) -> None:
        meta = {
            **more,
            "generation": self._generation + 1,
            "statistics": description_of(self._empty),
            "means": account.means,
            "keep_contributions": account.keeps,
            "forgotten_classes": sorted(account.forgotten_classes),
            "state": state,
            "destroying": int(destroying),
        }
        rows = ((name, json.dumps(value)) for name, value in meta.items())
        self.db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)

    # -- parts ------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._db is None:
            db = connect(self.path, BOOKS)
            self._keys = KeyFile(self.folder / KEY_FILE)  # on a full disk it fails
            self._db, self._sums = db, Sums(db, self._empty)

    def _is_blank(self) -> bool:
        """Whether neither rows nor keys were ever written."""
        tables = [(self.path, BOOKS, "meta"), (self.folder / KEY_FILE, KEYS, "keys")]
        for path, schema, table in tables:
            if not path.exists():
                continue
            with closing(connect(path, schema)) as there:
                if there.execute(f"SELECT 1 FROM {table}").fetchone():
                    return False
        return True

    def _meta(self) -> dict[str, str]:
        return dict(self.db.execute("SELECT name, value FROM meta"))

    def _require_latest(self) -> None:
        there = int(self._meta().get("generation", 0))
        if there != self._generation:
            raise ConfigError(
                f"{self.path} was written by another process, or by an earlier run, since this one "
                "read it (or was not read): nothing was changed; read it with resume, or begin in "
                "another folder"
            )

    def _destroy(self) -> None:
        """Destroy every key of what is no longer in the books, and what is left of deleted rows."""
        query = " UNION ".join(f"SELECT key FROM {table} WHERE key NOT NULL" for table in _SEALED)
        state = bytes.fromhex(json.loads(self._meta().get("state", '""')))
        names = (name for (name,) in self.db.execute(query))
        self._keys.keep((state, *names))
        leave_nothing_behind(self.db)
        self.db.execute("INSERT OR REPLACE INTO meta VALUES ('destroying', '0')")
        self._overdue = False


def _value(table: Any, key: Any) -> str | None:
    """What a table holds at a key, as JSON; None where it is not in it."""
    if key not in table:
        return None
    if isinstance(table, set):
        return "true"
    value = table[key]
    return json.dumps(value.to_dict() if hasattr(value, "to_dict") else value)
