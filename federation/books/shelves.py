"""Contributions and ledger entries as rows, decrypted when they are asked for."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocl.errors import DataError
from protocl.federation.books.keys import KeyFile
from protocl.federation.books.sealing import from_bytes, to_bytes
from protocl.federation.wire.statistics import Packed
from protocl.federation.wire.traffic import Entry, Outcome

CERTIFICATE = "certificate"
"""Outcome of the rows that are no entries but say what was forgotten."""

DATA, LABELS, SUMS = "contribution", "labels", "sums"
"""What is sealed under keys."""

_ENTRY = "round, client, outcome, bytes, epoch, seq, kind, reason, key, labels"


def certificates_of(books: sqlite3.Connection) -> list[dict[str, Any]]:
    """What was forgotten, oldest first, each with the ``number`` of its row.

    Raises:
        DataError: a row says something else.
    """
    query = "SELECT number, reason FROM ledger WHERE round = 0 AND outcome = ? ORDER BY number"
    rows = books.execute(query, (CERTIFICATE,))
    return [{"number": number, **_certificate(number, text)} for number, text in rows]


def _certificate(number: int, text: str) -> dict[str, Any]:
    """What a row says was forgotten, or that a level is without it."""
    said = json.loads(text)
    wanted = {"before", "after", "when"}
    if isinstance(said, dict) and said.keys() >= wanted and said.keys() & {"forgotten", "entries"}:
        return said
    raise DataError(
        f"row {number} of the ledger is no certificate: {text:.80}; the books are damaged, or were "
        "changed: restore a backup"
    )


class Outline(NamedTuple):
    """What limits ask of a contribution: see :class:`.Packed`, which answers as well."""

    class_ids: NDArray[np.int64]
    reach: dict[str, int]


def joined(outlines: Iterable[Outline]) -> list[Outline]:
    """One outline for several; none for none."""
    found: list[Outline] = []
    for ids, reach in outlines:
        if found:
            known, before = found.pop()
            ids = known if np.array_equal(known, ids) else np.union1d(known, ids)
            reach = {name: before[name] + value for name, value in reach.items()}
        found.append(Outline(ids, reach))
    return found


class Recent(NamedTuple):
    """What became of a client's contributions since they were last on the shelf.

    Attributes:
        keeps: whether those on the shelf still count.
        added: what counts besides them.
    """

    keeps: bool = True
    added: tuple[Packed, ...] = ()


def packed_to_bytes(packed: Packed) -> bytes:
    """A contribution as bytes."""
    named = {"class_ids": packed.class_ids, "counts": packed.counts}
    return to_bytes(named | {f"sums/{name}": a for name, a in packed.sums.items()}, packed.reach)


def packed_of_bytes(content: bytes) -> Packed:
    """What :func:`packed_to_bytes` was given."""
    arrays, reach = from_bytes(content)
    ids, counts = arrays.pop("class_ids"), arrays.pop("counts")
    sums = {name.removeprefix("sums/"): array for name, array in arrays.items()}
    return Packed(ids, counts, sums, reach)


class ContributionShelf:
    """The contributions in the books; see :class:`.kept.Shelf`."""

    def __init__(self, books: sqlite3.Connection, keys: KeyFile) -> None:
        self._books, self._keys = books, keys
        self.known: dict[str, list[Outline]] = {}

    def __contains__(self, client: object) -> bool:
        query = "SELECT 1 FROM contributions WHERE client = ? LIMIT 1"
        return self._books.execute(query, (client,)).fetchone() is not None

    def __iter__(self) -> Iterator[str]:
        return (row[0] for row in self._books.execute("SELECT DISTINCT client FROM contributions"))

    def of(self, client: str) -> tuple[Packed, ...]:
        """All of a client, oldest first."""
        query = "SELECT key, data FROM contributions WHERE client = ? ORDER BY number"
        rows = self._books.execute(query, (client,)).fetchall()
        return tuple(packed_of_bytes(self._keys[key].open(data, DATA)) for key, data in rows)

    def outlines(self, client: str) -> Sequence[Outline]:
        """The same as one, without the statistics; what was asked for once is not read again."""
        if client not in self.known:
            query = (
                "SELECT ledger.key, labels FROM contributions JOIN ledger USING (number) "
                "WHERE contributions.client = ? ORDER BY number"
            )
            rows = self._books.execute(query, (client,)).fetchall()
            self.known[client] = joined(self._outline(key, labels) for key, labels in rows)
        return self.known[client]

    def note(self, client: str, recent: Recent) -> None:
        """Be told of what was written of a client."""
        if client in self.known or not recent.keeps:
            before = self.known.get(client, []) if recent.keeps else []
            self.known[client] = joined(
                (*before, *(Outline(part.class_ids, part.reach) for part in recent.added))
            )

    def _outline(self, key: bytes, labels: bytes) -> Outline:
        arrays, reach = from_bytes(self._keys[key].open(labels, LABELS))
        return Outline(arrays["classes"], reach)


class EntryShelf:
    """The entries in the books; see :class:`.traffic.OlderEntries`."""

    def __init__(self, books: sqlite3.Connection, keys: KeyFile) -> None:
        self._books, self._keys = books, keys

    def __len__(self) -> int:
        query = "SELECT count(*) FROM ledger WHERE outcome != ?"
        return int(self._books.execute(query, (CERTIFICATE,)).fetchone()[0])

    def __iter__(self) -> Iterator[tuple[int, Entry]]:
        query = f"SELECT number, {_ENTRY} FROM ledger WHERE outcome != ? ORDER BY number"
        for number, *row in self._books.execute(query, (CERTIFICATE,)):
            yield number, self._entry(row)

    def of_client(self, client: str, outcomes: Sequence[Outcome]) -> list[tuple[int, Entry]]:
        """Those of a client that have one of the outcomes."""
        marks = ", ".join("?" * len(outcomes))
        kept = "SELECT number FROM contributions WHERE client = ?"
        others = "SELECT number FROM ledger WHERE client = ? AND kept = 0 AND first = 'merged'"
        query = (
            f"SELECT number, {_ENTRY} FROM ledger WHERE number IN ({kept} UNION {others}) "
            f"AND outcome IN ({marks}) ORDER BY number"
        )
        rows = self._books.execute(query, (client, client, *outcomes)).fetchall()
        return [(number, self._entry(row)) for number, *row in rows]

    def outcomes(self, round_number: int | None) -> Counter[str]:
        """How many have each outcome, in one round or in all."""
        where, values = ("", ()) if round_number is None else ("AND round = ?", (round_number,))
        query = f"SELECT outcome, count(*) FROM ledger WHERE outcome != ? {where} GROUP BY outcome"
        return Counter(dict(self._books.execute(query, (CERTIFICATE, *values))))

    def reasons(self, outcome: Outcome | None) -> Counter[str]:
        """How often each reason was given, for one outcome or for all."""
        query = (
            "SELECT reason, count(*) FROM ledger "
            "WHERE reason != '' AND outcome != ? AND outcome = ifnull(?, outcome) GROUP BY reason"
        )
        return Counter(dict(self._books.execute(query, (CERTIFICATE, outcome))))

    def _entry(self, row: Sequence[Any]) -> Entry:
        number, client, outcome, size, epoch, seq, kind, reason, name, labels = row
        key = None if name is None else self._keys.find(name)
        if key is None:  # forgotten, here or in the books of which these are a backup
            return Entry(number, client, outcome, (), (), size, epoch, seq, kind, reason)
        arrays, _ = from_bytes(key.open(labels, LABELS))
        listed = tuple(arrays["classes"].tolist()), tuple(arrays["counts"].tolist())
        return Entry(number, client, outcome, *listed, size, epoch, seq, kind, reason)
