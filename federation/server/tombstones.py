"""Who was forgotten, in a file that no checkpoint replaces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protocl.errors import DataError
from protocl.federation.exactly_once.server import Tombstone
from protocl.io.atomic import atomic_write


class TombstoneFile:
    """Those forgotten, one JSON object a line; keep it apart from what is restored from backups.

    Args:
        folder: of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "forgotten.jsonl"

    def __iter__(self) -> Iterator[Tombstone]:
        """All of them, oldest first.

        Raises:
            DataError: the file is damaged.
        """
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        try:
            values = [json.loads(line) for line in lines]
            yield from (_tombstone(v) for v in values)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.path} is damaged: {error}; restore it, for who was forgotten stands there"
            ) from error

    def add(self, tombstone: Tombstone) -> None:
        """Write one more, the whole file or nothing."""
        lines = [json.dumps(known._asdict()) + "\n" for known in (*self, tombstone)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, "".join(lines))


def _tombstone(values: dict[str, Any]) -> Tombstone:
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return Tombstone(**values | lists)
