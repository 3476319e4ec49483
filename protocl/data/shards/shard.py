"""A shard: one file, or one part of a data set, whose entries are read in order, some at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocl.data.readers.columns import Table
from protocl.data.readers.roles import Roles
from protocl.data.readers.values import Label
from protocl.data.shards.decoding import Wanted, decoded_sample, read_label
from protocl.errors import DataError

Kind = Literal["damaged shard", "empty shard", "damaged sample", "no label", "duplicate name"]
"""What can be wrong, as it is counted."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with an entry, or with a whole shard.

    Attributes:
        kind: by which faults are counted.
        message: names shard and entry, what was expected and what came.
    """

    kind: Kind
    message: str


@dataclass(frozen=True)
class Entry:
    """One sample as it lies in its shard.

    Attributes:
        name: how it is called there.
        sample: content of a file, array, or picture.
        label: as it is written.
    """

    name: str
    sample: Any
    label: Any


@dataclass(frozen=True, eq=False)
class Portion:
    """Consecutive entries of a shard.

    Attributes:
        shard: place of the shard among all.
        stop: entries of the shard up to the end of this portion.
        last: whether the shard ends here.
        x: samples ``(N, ...)`` that could be read, or None.
        distinct: their classes, each once.
        codes: ``(N,)`` the place of each sample's class in ``distinct``.
        names: ``N`` names, for messages.
        faults: entries that could not be read.
    """

    shard: int
    stop: int
    last: bool
    x: Tensor | None = None
    distinct: Sequence[Label] = ()
    codes: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    names: Sequence[str] = ()
    faults: Sequence[Fault] = ()


@dataclass(frozen=True)
class Layout:
    """The columns of a table, which those of one stream share.

    Attributes:
        names: of all its columns.
        features: columns of numbers, in the order in which a sample holds them.
    """

    names: frozenset[str]
    features: tuple[str, ...]


class DamagedShardError(DataError):
    """A shard that cannot be read any further."""


class Shard(ABC):
    """Entries in an order that is always the same.

    Attributes:
        name: of the shard in messages.
        layout: columns of the first table of a stream, in whose order features are read.
    """

    name: str
    layout: Layout | None = None

    @property
    def home(self) -> Path | None:
        """The file that holds it, or None."""
        return None

    def first_rows(self) -> tuple[Table, Roles] | None:
        """Some rows of a table, and which column is what; None of what is no table.

        Raises:
            DamagedShardError: it cannot be read, or says too little.
        """
        return None

    def identity(self) -> list[int]:
        """Size and time of change of its file, which differ where it was replaced."""
        if self.home is None:
            return []
        status = self.home.stat()
        return [status.st_size, status.st_mtime_ns]

    @abstractmethod
    def entries(self, start: int) -> Iterator[Entry | Fault]:
        """Entries from the one numbered ``start`` (from 0) on.

        Raises:
            DamagedShardError: the shard cannot be read, or no further.
        """

    def portions(self, place: int, start: int, size: int, wanted: Wanted) -> Iterator[Portion]:
        """Entries from ``start`` on, ``size`` at a time; a shard without any is one fault.

        Args:
            place: of the shard among all.
            start: a multiple of ``size``.
            size: entries a portion, of which those that cannot be read are left out.
            wanted: what a sample has to be.
        """
        stop, waiting, faults = start, list[Entry | Fault](), list[Fault]()
        try:
            for entry in self.entries(start):
                waiting.append(entry)
                if len(waiting) == size:
                    stop += size
                    yield assembled(self.name, place, stop, False, waiting, wanted)
                    waiting = []
        except DamagedShardError as error:
            faults.append(Fault("damaged shard", str(error)))
        stop += len(waiting)
        if not stop and not faults:
            faults.append(Fault("empty shard", f"{self.name} holds no samples"))
        yield assembled(self.name, place, stop, True, [*waiting, *faults], wanted)


def assembled(
    shard: str, place: int, stop: int, last: bool, entries: Sequence[Entry | Fault], wanted: Wanted
) -> Portion:
    """Entries as one portion, each read by itself."""
    x, labels, names, faults = list[Tensor](), list[Label](), list[str](), list[Fault]()
    for entry in entries:
        read = entry if isinstance(entry, Fault) else _read(entry, shard, wanted)
        if isinstance(read, Fault):
            faults.append(read)
            continue
        x.append(read[0])
        labels.append(read[1])
        names.append(entry.name if isinstance(entry, Entry) else "")
    distinct = list(dict.fromkeys(labels))
    codes = np.array([distinct.index(label) for label in labels], dtype=np.int64)
    samples = torch.stack(x) if x else None
    return Portion(place, stop, last, samples, distinct, codes, names, faults)


def _read(entry: Entry, shard: str, wanted: Wanted) -> tuple[Tensor, Label] | Fault:
    """The sample and label of an entry, or what is wrong with it."""
    what = f"{shard}: sample '{entry.name}'"
    try:
        label = read_label(entry.label, what, wanted)
    except DataError as error:
        return Fault("no label", str(error))
    try:
        return decoded_sample(entry.sample, what, wanted), label
    except DataError as error:
        return Fault("damaged sample", str(error))
