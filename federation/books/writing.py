"""One transaction of the books: what changed since the last one, and nothing else."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import numpy as np

from protocl.federation.books.sealing import Key, from_bytes, to_bytes
from protocl.federation.books.shelves import (
    CERTIFICATE,
    DATA,
    LABELS,
    ContributionShelf,
    Recent,
    packed_of_bytes,
    packed_to_bytes,
)
from protocl.federation.wire.statistics import Packed
from protocl.federation.wire.traffic import Entry, Ledger
from protocl.memory import PrototypeMemory

BEGINNING = bytes(32)
"""What the chain of the ledger begins with."""


class Forgetting(NamedTuple):
    """What was forgotten, and digests of the merged memory before and after.

    Attributes:
        client, life, row: of an edge whose row has taken it away, by which the edge knows it.
    """

    what: str
    before: bytes
    after: bytes
    client: str = ""
    life: str = ""
    row: int = 0


class Kept(Protocol):
    """What counts of each client; see :class:`.kept.Contributions`."""

    shelf: ContributionShelf | None
    recent: dict[str, Recent]


@dataclass
class Account:
    """All that the books hold of the merged memory.

    Attributes:
        memory: the sum.
        ledger: what was accepted from whom.
        contributions: what counts of each client.
        tables: by name, each of which notes its changes.
        forgotten_classes: those left out of all that is to come.
        forgettings: since the books were last written.
        keeps: whether contributions are kept.
        means: groups of each class, which have ids of their own.
        receipts: certificates of the level above, since the books were last written.
    """

    memory: PrototypeMemory
    ledger: Ledger
    contributions: Kept
    tables: Mapping[str, Any]
    forgotten_classes: frozenset[int]
    forgettings: list[Forgetting] = field(default_factory=list)
    keeps: bool = True
    means: int = 1
    receipts: list[dict[str, Any]] = field(default_factory=list)


def digest_of(memory: PrototypeMemory) -> bytes:
    """A digest of all that a memory holds, to the last bit."""
    digest = hashlib.sha256()
    for name, part in sorted(memory.parts().items()):
        digest.update(f"{name} {tuple(part.shape)} ".encode())
        digest.update(part.cpu().numpy().tobytes())
    return digest.digest()


def link(before: bytes, fields: tuple[Any, ...], seal: bytes) -> bytes:
    """The next value of the chain: SHA-256 of the one before, of an entry, and of its seal."""
    return hashlib.sha256(before + json.dumps(fields).encode() + seal).digest()


class Writing:
    """Writes ledger and contributions within a transaction.

    Args:
        books: in the transaction.
        account: of which.

    Attributes:
        keys: that must be on disk before the transaction ends.
    """

    def __init__(self, books: sqlite3.Connection, account: Account) -> None:
        self._books, self._account = books, account
        self.keys: list[Key] = []
        row = books.execute("SELECT number, chain FROM ledger ORDER BY number DESC").fetchone()
        self._number: int = -1 if row is None else row[0]
        self._chain: bytes = BEGINNING if row is None else row[1]
        self._before = self._number

    def new_key(self) -> Key:
        """Draw a key that is kept."""
        self.keys.append(Key.new())
        return self.keys[-1]

    # -- what is new ------------------------------------------------------------------------

    def contribute(self) -> None:
        """Drop contributions that count no more, then append entries, and what came with them."""
        books, recent = self._books, self._account.contributions.recent
        gone = [(client,) for client, (keeps, _) in recent.items() if not keeps]
        of_client = "SELECT number FROM contributions WHERE client = ?"
        books.executemany(f"UPDATE ledger SET kept = 0 WHERE number IN ({of_client})", gone)
        books.executemany("DELETE FROM contributions WHERE client = ?", gone)
        self._append(self._rows(self._account.ledger.recent))

    def certify(self, forgetting: Forgetting, before: Key, after: Key) -> None:
        """Append what was forgotten, with digests that say nothing without the keys."""
        certificate = {
            "forgotten": forgetting.what,
            "before": before.mark(forgetting.before).hex(),
            "after": after.mark(forgetting.after).hex(),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if forgetting.row:
            certificate |= {key: getattr(forgetting, key) for key in ("client", "life", "row")}
        self.keep_certificate(certificate)

    def keep_certificate(self, certificate: Mapping[str, Any]) -> None:
        """Append a certificate as it is."""
        entry = Entry(0, "", "forgotten", reason=json.dumps(certificate))
        self._append(iter([self._row(entry, CERTIFICATE, None)]))

    def _append(self, rows: Iterator[tuple[Any, ...]]) -> None:
        marks = ", ".join("?" * 16)
        self._books.executemany(f"INSERT INTO ledger VALUES ({marks})", rows)

    def _rows(self, entries: list[Entry]) -> Iterator[tuple[Any, ...]]:
        """Entries as rows; those that count take the contributions of their client, in order."""
        kept = self._account.contributions.recent
        waiting = {client: iter(added) for client, (_, added) in kept.items()}
        # Before there were books the first of a client may have been added up.
        spare = Counter(entry.client for entry in entries if entry.outcome == "merged")
        spare.subtract({client: len(added) for client, (_, added) in kept.items()})
        for entry in entries:
            packed = None
            if entry.outcome == "merged" and self._account.keeps:
                spare[entry.client] -= 1
                packed = None if spare[entry.client] >= 0 else next(waiting[entry.client])
            yield self._row(entry, entry.outcome, packed)

    def _row(self, entry: Entry, outcome: str, packed: Packed | None) -> tuple[Any, ...]:
        self._number += 1
        key, labels, seal = None, None, b""
        if entry.classes or packed is not None:
            key = self.new_key()
            labels, seal = self._sealed(
                self._number, key, labels_of(entry, packed), packed, entry.client
            )
        first = CERTIFICATE if outcome == CERTIFICATE else first_outcome(entry.outcome)
        fields = (
            entry.round, entry.client, entry.bytes, entry.epoch, entry.seq, entry.kind,
            entry.reason,
        )  # fmt: skip
        self._chain = link(self._chain, (self._number, first, *fields), seal)
        name = None if key is None else key.name
        number, client, size, epoch, seq, kind, reason = fields
        return (
            self._number, number, client, outcome, size, epoch, seq, kind, reason, name, labels,
            first, seal, seal, self._chain, int(packed is not None),
        )  # fmt: skip

    def _sealed(
        self, number: int, key: Key, labels: bytes, packed: Packed | None, client: str
    ) -> tuple[bytes, bytes]:
        """Labels as they are stored, and the mark of them and of the contribution."""
        data = b"" if packed is None else packed_to_bytes(packed)
        if packed is not None:
            row = number, client, key.name, key.seal(data, DATA)
            self._books.execute("INSERT INTO contributions VALUES (?, ?, ?, ?)", row)
        return key.seal(labels, LABELS), key.mark(labels, data)

    # -- what is no longer as it was ----------------------------------------------------------

    def change(self) -> None:
        """Write what became of entries that are in the books."""
        changes = (
            (number, change.now)
            for own in self._account.ledger.changed.values()
            for number, change in own.items()
        )
        for number, entry in changes:
            query = "UPDATE ledger SET outcome = ? WHERE number = ?"
            if entry.outcome == "forgotten":
                query = "UPDATE ledger SET outcome = ?, key = NULL, labels = NULL WHERE number = ?"
            self._books.execute(query, (entry.outcome, number))

    def rewrite(self, key_of: Callable[[bytes], Key], kept: Callable[[Packed], Packed]) -> None:
        """Leave the forgotten classes out of older rows, which then have other keys."""
        gone, books = self._account.forgotten_classes, self._books
        older = "SELECT number FROM ledger WHERE key NOT NULL AND number <= ?"
        numbers = books.execute(older, (self._before,)).fetchall()
        query = (
            "SELECT ledger.client, ledger.key, labels, data FROM ledger "
            "LEFT JOIN contributions USING (number) WHERE number = ?"
        )
        for (number,) in numbers:
            client, name, labels, data = books.execute(query, (number,)).fetchone()
            old = key_of(name)
            arrays, reach = from_bytes(old.open(labels, LABELS))
            here = ~np.isin(arrays["classes"], list(gone))
            if here.all():
                continue
            shorter = to_bytes({n: a[here] for n, a in arrays.items()}, reach)
            packed = None if data is None else kept(packed_of_bytes(old.open(data, DATA)))
            books.execute("DELETE FROM contributions WHERE number = ?", (number,))
            key = self.new_key()
            sealed, mark = self._sealed(number, key, shorter, packed, client)
            books.execute(
                "UPDATE ledger SET key = ?, labels = ?, mark = ? WHERE number = ?",
                (key.name, sealed, mark, number),
            )


def labels_of(entry: Entry, packed: Packed | None) -> bytes:
    """Classes and counts of an entry, and how far sums of its contribution reach."""
    arrays = {
        "classes": np.array(entry.classes, dtype=np.int64),
        "counts": np.array(entry.counts, dtype=np.int64),
    }
    return to_bytes(arrays, {} if packed is None else packed.reach)


def first_outcome(outcome: str) -> str:
    """The outcome that an entry had when it was made, whatever became of it since."""
    return "merged" if outcome in ("merged", "replaced", "forgotten") else outcome
