"""Books that are read and not changed: what counted in them, now and before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from protocl.errors import DataError
from protocl.federation.books.backup import folder_of_books
from protocl.federation.books.books import FILE, KEY_FILE
from protocl.federation.books.database import connect_written, named
from protocl.federation.books.keys import KeyFile
from protocl.federation.books.shelves import CERTIFICATE, DATA, packed_of_bytes
from protocl.federation.wire.statistics import PackedForm
from protocl.memory import PrototypeMemory


class NotKeptError(DataError):
    """What books were the sum of cannot be added up any more."""


class ChangedSinceError(NotKeptError):
    """Something of it was forgotten or replaced."""


class OpenBooks:
    """Books that are read and not changed."""

    def __init__(self, db: Any, keys: KeyFile) -> None:
        self.db, self.keys = db, keys

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What is true of all of the books."""
        return {n: json.loads(v) for n, v in self.db.execute("SELECT name, value FROM meta")}

    @cached_property
    def form(self) -> PackedForm:
        """Of the statistics that are in them."""
        return PackedForm(PrototypeMemory.described(self.meta["statistics"]))

    def memory(self, key: bytes, data: bytes) -> PrototypeMemory:
        """A contribution."""
        return self.form.memory(packed_of_bytes(self.keys[key].open(data, DATA)))

    def sum_of(self, entries: int) -> PrototypeMemory:
        """What the first ``entries`` rows of the ledger summed up to when there were no more.

        Raises:
            NotKeptError: something of it was forgotten or replaced since, or was never kept.
        """
        if not self.meta["plain"]:
            raise NotKeptError("a rule merged its clients, which is not in its books")
        if not self.meta["keep_contributions"]:
            raise NotKeptError("its contributions are not kept")
        total = self.form.empty.empty_like()
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
            raise ChangedSinceError("it has forgotten or replaced something of it since")
        if any(rewritten for *_, rewritten in counting) and self._forgot_classes_since(entries):
            raise ChangedSinceError("it has forgotten a class of it since")
        return [number for number, *_ in counting]

    def _forgot_classes_since(self, entries: int) -> bool:
        query = "SELECT reason FROM ledger WHERE number >= ? AND outcome = ?"
        rows = self.db.execute(query, (entries, CERTIFICATE))
        return any(json.loads(text).get("forgotten", "").startswith("classes") for (text,) in rows)


@contextmanager
def opened(folder: Path) -> Iterator[OpenBooks]:
    """The books of a folder, as they are between two rounds.

    Raises:
        ConfigError: there are no books, or of another version.
        DataError: they are damaged or empty, or the keys are not there.
    """
    place = folder_of_books(folder)
    if not (place / KEY_FILE).exists():
        raise DataError(f"{place / KEY_FILE} is missing, without which nothing can be checked")
    with ExitStack() as stack:
        db = stack.enter_context(closing(connect_written(place / FILE)))
        keys = stack.enter_context(closing(KeyFile(place / KEY_FILE)))
        stack.enter_context(named(place / FILE))
        db.execute("BEGIN")
        yield OpenBooks(db, keys)
