"""Large arrays in files of their own, which one checkpoint after the other refers to.

A piece is named by the SHA-256 of its content: what is there already is not written again, and
what was damaged is told by its name.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from protocl.errors import DataError
from protocl.io.atomic import atomic_write, discard_partial

LARGE = 1 << 20
"""Bytes from which on an array is kept in pieces."""

PIECE = 1 << 24
"""Bytes up to which rows share a piece."""

ZEROS = "zeros"
"""In place of the name of a piece: rows of zeros, such as unused halves of sums, take none."""

_READ = 1 << 20


class Place(NamedTuple):
    """Where bytes lie: in a piece, or without one in the checkpoint itself."""

    piece: str | None
    offset: int
    size: int


class KeyedRows(Protocol):
    """An object that knows which rows of its tensors have changed."""

    def keyed_rows(self) -> Iterable[tuple[Tensor, Sequence[str]]]:
        """Its tensors, and one key a row: rows of equal keys are equal, whenever they are saved."""


class PieceFolder:
    """The pieces of the checkpoints of one folder.

    Rows that were saved before are found by their keys, and not read again. A piece of which more
    than half is no longer needed is not referred to: what remains of it is written anew, so that
    a checkpoint's pieces take at most twice its rows.

    Args:
        path: the folder; it is created with the first piece.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[str, Place] = {}
        self._asked: set[str] = set()
        self._sound: set[str] = set()

    def add(self, content: memoryview) -> str:
        """Keep ``content``, and give the name of its piece."""
        name = hashlib.sha256(content).hexdigest()
        if name not in self._sound or not self._file(name).exists():
            if not self._is_whole(name):
                atomic_write(self._file(name), content)
            self._sound.add(name)
        return name

    def add_rows(self, rows: Tensor, keys: Sequence[str]) -> list[Place]:
        """Keep the rows of a tensor ``(N, ...)`` of which ``keys`` are not known.

        Returns:
            Where each row lies.
        """
        known = self._known(keys)
        missing = [row for row, key in enumerate(keys) if key not in known]
        size = rows[0].nbytes
        empty = {row for row in missing if _all_zero(bytes_of(rows[row]))}
        known |= {keys[row]: Place(ZEROS, 0, size) for row in empty}
        filled = [row for row in missing if row not in empty]
        for start, stop in _runs(filled, max(1, PIECE // size)):
            piece = self.add(bytes_of(rows[start:stop]))
            for row in range(start, stop):
                known[keys[row]] = Place(piece, (row - start) * size, size)
        self._places |= known
        self._asked |= known.keys()
        return [known[key] for key in keys]

    def read_rows(self, rows: Tensor, keys: Sequence[str], places: Sequence[Place]) -> None:
        """Fill ``rows`` by what :meth:`add_rows` kept, and know their keys from now on.

        Raises:
            DataError: a piece is missing or damaged.
        """
        for row, place in zip(rows, places, strict=True):
            self.read(place, row)
        self._places |= dict(zip(keys, places, strict=True))

    def read(self, place: Place, into: Tensor) -> None:
        """Fill a tensor by the bytes of a piece.

        Raises:
            DataError: it is missing or damaged.
        """
        assert place.piece is not None
        if place.piece == ZEROS:
            into.zero_()
            return
        file = self._file(place.piece)
        if place.piece not in self._sound and not self._is_whole(place.piece):
            state = "is damaged: its checksum is not its name" if file.exists() else "is missing"
            raise DataError(f"{file}, to which the checkpoint refers, {state}")
        self._sound.add(place.piece)
        with file.open("rb") as content:
            content.seek(place.offset)
            content.readinto(bytes_of(into))

    def keep(self, names: Collection[str]) -> None:
        """Remove all but the pieces named, and forget rows that were not asked for since."""
        discard_partial(self.path)  # of a process that was killed
        for file in self.path.glob("*.piece"):
            if file.stem not in names:
                file.unlink()
        self._sound &= set(names)
        self._places = {key: self._places[key] for key in self._asked}
        self._asked.clear()

    def _known(self, keys: Sequence[str]) -> dict[str, Place]:
        """Places of the rows that are in pieces worth keeping."""
        found = {key: self._places[key] for key in keys if key in self._places}
        used = Counter[str | None]()
        for place in found.values():
            used[place.piece] += place.size
        worth = {name for name, size in used.items() if 0 <= self._size(str(name)) <= 2 * size}
        return {key: place for key, place in found.items() if place.piece in worth}

    def _size(self, name: str) -> int:
        """Bytes of a piece; -1 where somebody removed it."""
        if name == ZEROS:
            return 0
        file = self._file(name)
        return file.stat().st_size if file.exists() else -1

    def _is_whole(self, name: str) -> bool:
        file = self._file(name)
        if not file.exists():
            return False
        digest = hashlib.sha256()
        with file.open("rb") as content:
            while part := content.read(_READ):
                digest.update(part)
        return digest.hexdigest() == name

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.piece"


def bytes_of(values: Tensor | torch.UntypedStorage) -> memoryview:
    """The memory of a contiguous tensor or a storage; a copy of it unless that is on the CPU."""
    if isinstance(values, Tensor):
        flat = values.detach().cpu().contiguous().view(-1)
        # A tensor of no elements has no bytes to be viewed as.
        raw = flat.view(torch.uint8) if flat.numel() else flat.new_empty(0, dtype=torch.uint8)
    else:
        raw = torch.empty(0, dtype=torch.uint8).set_(values.cpu())
    view: memoryview = raw.numpy().data
    return view


def _all_zero(content: memoryview) -> bool:
    numbers = np.frombuffer(content, np.uint8)
    return not numbers.view(np.uint64 if len(numbers) % 8 == 0 else np.uint8).any()


def _runs(rows: Sequence[int], longest: int) -> Iterator[tuple[int, int]]:
    """Ascending ``rows`` as ranges ``(start, stop)`` of neighbours."""
    start = stop = -1
    for row in rows:
        if row == stop and stop - start < longest:
            stop += 1
            continue
        if stop > start:
            yield start, stop
        start, stop = row, row + 1
    if stop > start:
        yield start, stop
