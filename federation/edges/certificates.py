"""Certificates of what an edge has forgotten: complete once the root is without it, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from protocl.federation.books.backup import folder_of_books
from protocl.federation.books.books import FILE
from protocl.federation.books.database import connect_written, named
from protocl.federation.books.requests import Requests
from protocl.federation.books.shelves import certificates_of
from protocl.federation.edges.files import EdgeFolder, load_holding, told_above

ROOT = "root"
"""Name of the level above an edge."""


class Certificate(NamedTuple):
    """That something was forgotten.

    Attributes:
        what: was.
        levels: name of a level that is without it -> ``before`` and ``after``, digests of its
            merged memory (HMAC-SHA256, which say nothing without its keys), and ``when``.
        pending: levels that are not without it yet.
    """

    what: str
    levels: dict[str, dict[str, Any]]
    pending: tuple[str, ...]

    def __str__(self) -> str:
        state = f"pending at: {', '.join(self.pending)}" if self.pending else "complete"
        levels = (
            f"  {name}: {said['when']} before={said['before']} after={said['after']}"
            for name, said in self.levels.items()
        )
        return "\n".join((f"{self.what}: {state}", *levels))


def certificates(folder: Path) -> Iterator[Certificate]:
    """All of a server, oldest first, then what it was asked for and has not done yet.

    Args:
        folder: of a run or a deployed server.

    Raises:
        ConfigError: there are no books.
        DataError: a file is damaged, or nothing was written to the books.
    """
    place = folder_of_books(folder)
    with closing(connect_written(place / FILE)) as books, named(place / FILE):
        rows = certificates_of(books)
    edge = EdgeFolder(place.parent)
    is_edge = edge.row.exists()
    here = load_holding(edge.row)[1]["edge"] if is_edge else "server"
    receipts = [*(row for row in rows if "level" in row), *told_above(edge.above).receipts]
    for row in rows:
        if "level" not in row:
            yield _certificate(row, here, receipts, is_edge)
    for _, wanted in Requests(place).waiting():
        yield Certificate(f"asked to {wanted}", {}, (here, *([ROOT] if is_edge else ())))


def _certificate(
    row: dict[str, Any], here: str, receipts: list[dict[str, Any]], is_edge: bool
) -> Certificate:
    """What a row of the ledger says, and the first receipt of a state that is without it."""
    found = (one for one in receipts if one["entries"] > row["number"])
    levels = {here: row} | ({ROOT: one} if (one := next(found, None)) else {})
    pending = (ROOT,) if is_edge and ROOT not in levels else ()
    return Certificate(row["forgotten"], levels, pending)
