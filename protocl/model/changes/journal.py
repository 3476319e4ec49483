"""Changes that the file of statistics does not hold yet: written down before they are answered.

A journal lies beside the statistics that its changes are to be added to, and is named after their
checksum. Whoever replaces the statistics thereby ends it: there is no moment at which a change
counts twice, or not at all, whenever a process is killed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from protocl.errors import DataError
from protocl.io.atomic import atomic_write, flush
from protocl.model.changes.change import Change

_NAME = "journal-{}.jsonl"


class Journal:
    """The changes to one file of statistics, one a line.

    Args:
        folder: of the model.
        checksum: of its statistics.
    """

    def __init__(self, folder: Path, checksum: str) -> None:
        self.path = folder / _NAME.format(checksum[:32])

    def read(self) -> list[Change]:
        """Its changes; without the last if a killed process left a part of it.

        Raises:
            DataError: a line is damaged.
        """
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [self._change(n, line) for n, line in enumerate(lines, start=1) if _whole(line)]

    def append(self, change: Change) -> None:
        """Write one more; it is on the disk when this returns, and absent if this fails.

        Raises:
            OSError: the disk is full, or the folder may not be written to.
        """
        fresh = not self.path.exists()
        with self.path.open("ab") as file:
            end = file.tell()
            try:
                file.write(change.line())
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                os.truncate(self.path, end)
                raise
        if fresh:
            flush(self.path.parent)

    def mend(self) -> None:
        """Cut off what a killed process left of a last line. For the one who may write here."""
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            os.truncate(self.path, end)

    def rewrite(self, changes: Sequence[Change]) -> None:
        """Hold these changes and no others; without any there is no file."""
        if changes:
            atomic_write(self.path, b"".join(change.line() for change in changes))
        else:
            self.path.unlink(missing_ok=True)

    def _change(self, number: int, line: bytes) -> Change:
        try:
            return Change.read(line)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(
                f"{self.path} is damaged in line {number}: {error}; restore it from a copy, or "
                "remove the line to go on without that change"
            ) from error


def discard_journals(folder: Path, keep: Journal | None = None) -> None:
    """Remove all journals of a model but one."""
    for path in folder.glob(_NAME.format("*")):
        if keep is None or path != keep.path:
            path.unlink(missing_ok=True)


def _whole(line: bytes) -> bool:
    return line.endswith(b"\n")
