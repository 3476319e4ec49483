"""Who and what was forgotten, in a file that no backup replaces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from protocl.errors import DataError
from protocl.federation.exactly_once.server import Tombstone
from protocl.io.atomic import atomic_write


class TombstoneFile:
    """Clients and classes, one JSON object a line; keep it apart from what backups bring back.

    Args:
        folder: of the books.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "forgotten.jsonl"

    def __iter__(self) -> Iterator[Tombstone]:
        """All clients, oldest first.

        Raises:
            DataError: the file is damaged.
        """
        with self._reading():
            yield from (_tombstone(v) for v in self._lines() if "classes" not in v)

    @property
    def classes(self) -> frozenset[int]:
        """Ids of the classes.

        Raises:
            DataError: the file is damaged.
        """
        with self._reading():
            return frozenset(int(c) for v in self._lines() for c in v.get("classes", ()))

    def add(self, tombstone: Tombstone) -> None:
        """Write a client, the whole file or nothing."""
        self._write([*self._lines(), tombstone._asdict()])

    def add_classes(self, classes: Iterable[int]) -> None:
        """Write classes, the whole file or nothing."""
        if new := sorted(frozenset(classes) - self.classes):
            self._write([*self._lines(), {"classes": new}])

    def _lines(self) -> list[dict[str, Any]]:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return [json.loads(line) for line in lines]

    def _write(self, values: list[dict[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, "".join(json.dumps(value) + "\n" for value in values))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.path} is damaged: {error}; restore it, for who was forgotten stands there"
            ) from error


def _tombstone(values: dict[str, Any]) -> Tombstone:
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return Tombstone(**values | lists)
