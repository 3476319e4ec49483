"""A file of rows ``name,step,value`` in the folder of the run."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from protocl.io.atomic import atomic_write
from protocl.trackers.base import Place, Tracker

HEADER = ("name", "step", "value")


class Csv(Tracker):
    """Rows of name, step and value in ``scalars.csv``, in the folder of the run."""

    def __init__(self, place: Place) -> None:
        self.path = place.folder / "scalars.csv"
        if not self.path.exists():
            atomic_write(self.path, ",".join(HEADER) + "\n")
        self._file = self.path.open("a", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")

    def log(self, name: str, value: float, step: int) -> None:
        """See :meth:`.Tracker.log`."""
        self._writer.writerow((name, step, repr(value)))

    def go_on(self, step: int) -> None:
        """See :meth:`.Tracker.go_on`."""
        self._file.close()
        kept = [",".join(HEADER), *(line for line in self._lines() if _step(line) < step)]
        atomic_write(self.path, "\n".join(kept) + "\n")
        self._file = self.path.open("a", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")

    def flush(self) -> None:
        """See :meth:`.Tracker.flush`."""
        self._file.flush()

    def close(self, *, failed: bool) -> None:
        """See :meth:`.Tracker.close`."""
        self._file.close()

    def _lines(self) -> Iterator[str]:
        """Rows that were written as a whole; a killed process may have left a part of one."""
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]:
            if line.endswith("\n") and len(next(csv.reader([line]))) == len(HEADER):
                yield line.rstrip("\n")


def _step(line: str) -> int:
    return int(next(csv.reader([line]))[1])
