"""The merged memory as rows, one a class; those that changed are written."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from protocl.federation.books.keys import KeyFile
from protocl.federation.books.sealing import Key, from_bytes, to_bytes
from protocl.federation.books.shelves import SUMS
from protocl.memory import PrototypeMemory

_SHARED = -1
"""In place of a class id: what classes share."""


def _purpose(class_id: int) -> str:
    """What a sum is sealed for, so that none takes the place of another."""
    return f"{SUMS} {class_id}"


class Sums:
    """The rows of the merged memory.

    Args:
        books: with a table of them.
        like: a memory of the kind that is kept.
    """

    def __init__(self, books: sqlite3.Connection, like: PrototypeMemory) -> None:
        self._books, self._like = books, like
        self._shared = {name for name, form in like.forms.items() if form.shared}
        self._written: dict[int, tuple[bytes, bytes]] = {}  # class -> digest, name of its key

    def write(self, memory: PrototypeMemory, new_key: Callable[[], Key], keys: KeyFile, *,
              renew: bool) -> dict[int, tuple[bytes, bytes]]:  # fmt: skip
        """Write what changed.

        Args:
            memory: that is kept.
            new_key: draws one.
            keys: those there are.
            renew: give what changed other keys, so that what it was before cannot be read.

        Returns:
            What :meth:`written` must be told when the transaction has ended.
        """
        now = {}
        for class_id, arrays in self._rows(memory):
            content = to_bytes(arrays)
            digest = hashlib.blake2b(content, digest_size=16).digest()
            before, name = self._written.get(class_id, (b"", b""))
            if digest != before:
                key = keys.find(name) if name and not renew else None
                key = key or new_key()
                name = key.name
                row = class_id, name, key.seal(content, _purpose(class_id))
                self._books.execute("INSERT OR REPLACE INTO sums VALUES (?, ?, ?)", row)
            now[class_id] = digest, name
        gone = ((class_id,) for class_id in self._written.keys() - now.keys())
        self._books.executemany("DELETE FROM sums WHERE class_id = ?", gone)
        return now

    def written(self, rows: dict[int, tuple[bytes, bytes]]) -> None:
        """Be told that what :meth:`write` gave is on disk."""
        self._written = rows

    def read(self, keys: KeyFile) -> PrototypeMemory | None:
        """The merged memory; None where the keys of some of it were destroyed."""
        shared: dict[str, NDArray[Any]] = {}
        rows: dict[int, dict[str, NDArray[Any]]] = {}
        written = {}
        query = "SELECT class_id, key, data FROM sums ORDER BY class_id"
        for class_id, name, data in self._books.execute(query):
            key = keys.find(name)
            if key is None:  # so that all are written anew
                rows_there = self._books.execute("SELECT class_id, key FROM sums")
                self._written = {there: (b"", known) for there, known in rows_there}
                return None
            content = key.open(data, _purpose(class_id))
            arrays, _ = from_bytes(content)
            written[class_id] = hashlib.blake2b(content, digest_size=16).digest(), name
            if class_id == _SHARED:
                shared = arrays
            else:
                rows[class_id] = arrays
        self._written = written
        return self._memory(rows, shared)

    def _memory(
        self, rows: dict[int, dict[str, NDArray[Any]]], shared: dict[str, NDArray[Any]]
    ) -> PrototypeMemory:
        if not rows:
            return self._like.empty_like()
        names = next(iter(rows.values())).keys()
        parts = {name: np.stack([row[name] for row in rows.values()]) for name in names}
        parts |= shared | {"class_ids": np.array(list(rows), dtype=np.int64)}
        return PrototypeMemory.from_parts(
            self._like, {name: torch.from_numpy(np.array(part)) for name, part in parts.items()}
        )

    def _rows(self, memory: PrototypeMemory) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
        parts = {name: part.cpu().numpy() for name, part in memory.parts().items()}
        ids = parts.pop("class_ids").tolist()
        pooled = {n: p for n, p in parts.items() if n.partition("_")[0] in self._shared}
        if pooled:
            yield _SHARED, pooled
        each = {name: part for name, part in parts.items() if name not in pooled}
        for place, class_id in enumerate(ids):
            yield class_id, {name: part[place] for name, part in each.items()}
