"""Whether the rows that a root keeps are what the books of its edges sum to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from protocl.errors import ConfigError, DataError
from protocl.federation.books.audit import audit, same_sums
from protocl.federation.books.backup import folder_of_books
from protocl.federation.books.books import FILE, KEY_FILE
from protocl.federation.books.database import BOOKS, connect, named
from protocl.federation.books.keys import KeyFile
from protocl.federation.books.shelves import CERTIFICATE, DATA, packed_of_bytes
from protocl.federation.edges.files import EdgeFolder, load_holding, told_above
from protocl.federation.exactly_once.client import name_of_life
from protocl.federation.wire.statistics import PackedForm
from protocl.memory import PrototypeMemory


class NotKeptError(DataError):
    """What books were the sum of cannot be added up any more."""


class Checked(NamedTuple):
    """What an audit found of one edge.

    Attributes:
        name: of the edge.
        text: what was compared, or why it could not be.
        faults: what is not as it should be; empty where all is well.
        compared: whether the root's row was compared with the edge's books.
    """

    name: str
    text: str
    faults: tuple[str, ...] = ()
    compared: bool = False


class _Row(NamedTuple):
    client: str
    number: int
    memory: PrototypeMemory


def audit_tree(root: Path, edges: Sequence[Path]) -> Iterator[Checked]:
    """Compare each row that a root keeps with the books of the edge that sent it.

    It can be done while servers write. An edge's contributions are added up as far as they were in
    the row that the root has, so that what came since does not matter.

    Args:
        root: folder of the root.
        edges: of the edges, all of them.

    Raises:
        ConfigError: there are no books, or those of ``root`` are not of a root.
        DataError: they cannot be read.
    """
    rows, forgotten = _rows_of(root)
    for folder in edges:
        yield _check(folder, rows, forgotten)
    for row in rows.values():
        fault = "no folder was given of the edge that it is"
        yield Checked(f"client {row.client} of the root", "", (fault,))


def _rows_of(root: Path) -> tuple[dict[str, _Row], frozenset[int]]:
    """Name of a life -> the row that the root has of it, and the classes that it has forgotten."""
    with _opened(root) as books:
        if not books.meta.get("rows"):
            raise ConfigError(f"{root} has no rows of edges: give the folder of a root first")
        rows: dict[str, _Row] = {}
        query = (
            "SELECT ledger.client, epoch, seq, ledger.key, data FROM contributions "
            "JOIN ledger USING (number)"
        )
        for client, life, number, key, data in books.db.execute(query):
            rows[life] = _Row(client, number, books.memory(key, data))
        return rows, frozenset(books.meta["forgotten_classes"])


def _check(folder: Path, rows: dict[str, _Row], forgotten: frozenset[int]) -> Checked:
    found = audit(folder)
    edge = EdgeFolder(folder_of_books(folder).parent)
    if not edge.row.exists():
        raise ConfigError(f"{folder} is not the folder of an edge: it has no {edge.row.name}")
    name, faults = load_holding(edge.row)[1]["edge"], tuple(found.faults)
    told = told_above(edge.above)
    life = told.standing.life
    lives = [name_of_life(epoch) for epoch in (life.epoch, *life.replaces)]
    row = next((rows.pop(own) for own in lives if own in rows), None)
    if row is None:
        text = "the root has no row of it"
        return Checked(name, text, (*faults, text) if life.acknowledged else faults)
    label = f"row {row.number} (client {row.client} of the root)"
    if row.number not in told.entries:
        text = f"{label} is of before, or not of, what {edge.above.name} knows"
        return Checked(name, f"{text}; have the root ask this edge again", faults)
    try:
        with _opened(folder) as books:
            sums = books.sum_of(told.entries[row.number])
    except NotKeptError as error:
        return Checked(name, f"{label} is not compared: {error}; pending at: root", faults)
    if gone := forgotten.intersection(sums.classes.tolist()):
        sums.forget(sorted(gone))
    if others := differences(sums, row.memory):
        faults = (*faults, f"{label} is not what its books sum to: {'; '.join(others)} differ")
    how = "bit for bit" if sums.exact else "up to rounding"
    return Checked(
        name, f"{label} is, {how}, what its books sum to: {sums.total} samples", faults, True
    )


def differences(a: PrototypeMemory, b: PrototypeMemory) -> list[str]:
    """What differs between two memories, in words; empty where they are the same sums."""
    if same_sums(a, b):
        return []
    mine, theirs = set(a.classes.tolist()), set(b.classes.tolist())
    if mine != theirs:
        return [f"classes {', '.join(map(str, sorted(mine ^ theirs)))}"]
    parts = zip(sorted(a.parts().items()), sorted(b.parts().items()), strict=True)
    return [
        f"{name} of classes {_places(left, right, a.classes.tolist())}"
        for (name, left), (_, right) in parts
        if not torch.equal(left, right)
    ]


def _places(a: torch.Tensor, b: torch.Tensor, classes: list[int]) -> str:
    """Classes whose rows differ; all where classes share what differs."""
    if a.shape != b.shape or len(a) != len(classes):
        return "all"
    rows = (a != b).reshape(len(a), -1).any(1).tolist()
    return ", ".join(str(c) for c, differs in zip(classes, rows, strict=True) if differs)


class _OpenBooks:
    """Books that are read and not changed."""

    def __init__(self, db: Any, keys: KeyFile) -> None:
        self.db, self._keys = db, keys
        self.meta = {n: json.loads(v) for n, v in db.execute("SELECT name, value FROM meta")}
        self._form = PackedForm(PrototypeMemory.described(self.meta["statistics"]))

    def memory(self, key: bytes, data: bytes) -> PrototypeMemory:
        """A contribution."""
        return self._form.memory(packed_of_bytes(self._keys[key].open(data, DATA)))

    def sum_of(self, entries: int) -> PrototypeMemory:
        """What the first ``entries`` rows of the ledger summed up to when there were no more.

        Raises:
            NotKeptError: something of it was forgotten or replaced since.
        """
        if not self.meta["plain"]:
            raise NotKeptError("a rule merged its clients, which is not in its books")
        if not self.meta["keep_contributions"]:
            raise NotKeptError("its contributions are not kept")
        total = self._form.empty.empty_like()
        for number in self._counting(entries):
            query = "SELECT key, data FROM contributions WHERE number = ?"
            total.merge(self.memory(*self.db.execute(query, (number,)).fetchone()))
        return total

    def _counting(self, entries: int) -> list[int]:
        """Numbers of the rows that counted after the first ``entries``."""
        of_client: dict[str, list[tuple[int, bool, bool]]] = {}
        query = (
            "SELECT number, client, kind, outcome, first, reason, mark != seal FROM ledger "
            "WHERE number < ? AND first IN ('merged', ?) ORDER BY number"
        )
        rows = self.db.execute(query, (entries, CERTIFICATE))
        for number, client, kind, outcome, first, reason, rewritten in rows:
            if first == CERTIFICATE:  # of a client that was forgotten before
                what = json.loads(reason).get("forgotten", "")
                if what.startswith("client "):
                    of_client.pop(what.removeprefix("client "), None)
                continue
            if kind == "full":
                of_client[client] = []
            of_client.setdefault(client, []).append((number, outcome == "merged", rewritten))
        counting = [row for own in of_client.values() for row in own]
        if any(not kept for _, kept, _ in counting):
            raise NotKeptError("it has forgotten or replaced something of it since")
        if any(rewritten for *_, rewritten in counting) and self._forgot_classes_since(entries):
            raise NotKeptError("it has forgotten a class of it since")
        return [number for number, *_ in counting]

    def _forgot_classes_since(self, entries: int) -> bool:
        query = "SELECT reason FROM ledger WHERE number >= ? AND outcome = ?"
        rows = self.db.execute(query, (entries, CERTIFICATE))
        return any(json.loads(text).get("forgotten", "").startswith("classes") for (text,) in rows)


@contextmanager
def _opened(folder: Path) -> Iterator[_OpenBooks]:
    """The books of a folder, as they are between two rounds."""
    place = folder_of_books(folder)
    with ExitStack() as stack:
        db = stack.enter_context(closing(connect(place / FILE, BOOKS)))
        keys = stack.enter_context(closing(KeyFile(place / KEY_FILE)))
        stack.enter_context(named(place / FILE))
        db.execute("BEGIN")
        yield _OpenBooks(db, keys)
