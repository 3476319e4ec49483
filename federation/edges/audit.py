"""Whether the rows that a root keeps are what the books of its edges sum to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from protocl.errors import ConfigError
from protocl.federation.books.audit import audit, same_sums
from protocl.federation.books.backup import folder_of_books
from protocl.federation.books.reading import ChangedSinceError, NotKeptError, opened
from protocl.federation.edges.files import EdgeFolder, load_holding, told_above
from protocl.federation.exactly_once.client import name_of_life
from protocl.memory import PrototypeMemory


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

    def __str__(self) -> str:
        return f"row {self.number} (client {self.client} of the root)"


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
    with opened(root) as books:
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
    if row.number not in told.entries:
        text = f"{row} is of before, or not of, what {edge.above.name} knows"
        return Checked(name, f"{text}; have the root ask this edge again", faults)
    return _compare(Checked(name, "", faults), folder, row, told.entries[row.number], forgotten)


def _compare(
    found: Checked, folder: Path, row: _Row, entries: int, forgotten: frozenset[int]
) -> Checked:
    """Compare a row with what the first ``entries`` rows of an edge's ledger sum up to."""
    try:
        with opened(folder) as books:
            sums = books.sum_of(entries)
    except NotKeptError as error:
        pending = "; pending at: root" if isinstance(error, ChangedSinceError) else ""
        return found._replace(text=f"{row} is not compared: {error}{pending}")
    if gone := forgotten.intersection(sums.classes.tolist()):
        sums.forget(sorted(gone))
    if others := differences(sums, row.memory):
        fault = f"{row} is not what its books sum to: {'; '.join(others)} differ"
        return found._replace(faults=(*found.faults, fault), compared=True)
    how = "bit for bit" if sums.exact else "up to rounding"
    text = f"{row} is, {how}, what its books sum to: {sums.total} samples"
    return found._replace(text=text, compared=True)


def differences(a: PrototypeMemory, b: PrototypeMemory) -> list[str]:
    """What differs between two memories, in words; empty where they are the same sums."""
    if same_sums(a, b):
        return []
    mine, theirs = set(a.classes.tolist()), set(b.classes.tolist())
    if mine != theirs:
        return [f"classes {', '.join(map(str, sorted(mine ^ theirs)))}"]
    left, right, nothing = a.parts(), b.parts(), torch.zeros(0)
    pairs = {name: (left.get(name, nothing), right.get(name, nothing)) for name in left | right}
    return [
        f"{name} of classes {_places(*pair, a.classes.tolist())}"
        for name, pair in pairs.items()
        if not torch.equal(*pair)
    ]


def _places(a: torch.Tensor, b: torch.Tensor, classes: list[int]) -> str:
    """Classes whose rows differ; all where classes share what differs."""
    if a.shape != b.shape or len(a) != len(classes):
        return "all"
    rows = (a != b).reshape(len(a), -1).any(1).tolist()
    return ", ".join(str(c) for c, differs in zip(classes, rows, strict=True) if differs)
