"""Parquet files, read some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protocl.data.config import ColumnsConfig
from protocl.data.readers.columns import Table
from protocl.data.readers.roles import Roles
from protocl.data.readers.table import picture_of
from protocl.data.shards.decoding import Wanted, read_label, stacked
from protocl.data.shards.layout import shard_roles
from protocl.data.shards.shard import (
    DamagedShardError,
    Entry,
    Fault,
    Portion,
    Shard,
    assembled,
)
from protocl.errors import DataError

SUFFIXES = (".parquet", ".pq")
_OPENED: dict[str, Any] = {
    "buffer_size": 1 << 20, "pre_buffer": False, "page_checksum_verification": True,
}  # fmt: skip
"""Bytes of a column that are read at a time, instead of all of its row group; and what a writer
noted of them, if it did, is compared."""


@dataclass(eq=False)
class ParquetShard(Shard):
    """A Parquet file of numbers, lists of numbers, or pictures.

    Attributes:
        file: the file.
        columns: what its columns are, where their names do not say.
    """

    file: Path
    columns: ColumnsConfig

    def __post_init__(self) -> None:
        self.name = str(self.file)

    @property
    def home(self) -> Path:
        """See :attr:`.Shard.home`."""
        return self.file

    def entries(self, start: int) -> Iterator[Entry | Fault]:
        """See :meth:`.Shard.entries`."""
        for batch in self._batches(start, 64):
            roles = self._roles(batch)
            yield from self._entries(batch, start, roles)
            start += len(batch)

    def portions(self, place: int, start: int, size: int, wanted: Wanted) -> Iterator[Portion]:
        """See :meth:`.Shard.portions`; numbers are read column by column."""
        roles: Roles | None = None
        stop, faults = start, list[Fault]()
        try:
            for batch in self._batches(start, size):
                roles = roles or self._roles(batch)
                stop += len(batch)
                yield self._portion(batch, place, stop, roles, wanted)
        except DamagedShardError as error:
            faults.append(Fault("damaged shard", str(error)))
        if not stop and not faults:
            faults.append(Fault("empty shard", f"{self.name} holds no samples"))
        yield assembled(self.name, place, stop, True, faults, wanted)

    def _portion(self, batch: Any, place: int, stop: int, roles: Roles, wanted: Wanted) -> Portion:
        start = stop - len(batch)
        try:
            if roles.image is None:
                distinct, codes = self._labels(batch, roles.label, wanted)
                x = stacked(_numbers(batch, roles.features), self.name, wanted)
                names = [f"row {row + 1}" for row in range(start, stop)]
                return Portion(place, stop, False, x, distinct, codes, names)
        except DataError:
            pass  # row by row it is found which
        entries = list(self._entries(batch, start, roles))
        return assembled(self.name, place, stop, False, entries, wanted)

    def _labels(
        self, batch: Any, column: str, wanted: Wanted
    ) -> tuple[list[Any], np.ndarray[Any, np.dtype[np.int64]]]:
        values = batch.column(column)
        if values.null_count:
            raise DataError(f"{self.name}: a row has no label")
        encoded = _encoded(values)
        read = [read_label(v, self.name, wanted) for v in encoded.dictionary.to_pylist()]
        return read, encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)

    def _entries(self, batch: Any, start: int, roles: Roles) -> Iterator[Entry | Fault]:
        labels = batch.column(roles.label).to_pylist()
        for row, label in enumerate(labels):
            name = f"row {start + row + 1}"
            try:
                sample = self._sample(batch.slice(row, 1), roles)
            except DataError as error:
                yield Fault("damaged sample", f"{self.name}: {name}: {error}")
                continue
            yield Entry(name, sample, label)

    def _sample(self, row: Any, roles: Roles) -> Any:
        if roles.image is None:
            return _numbers(row, roles.features)[0]
        (value,) = row.column(roles.image).to_pylist()
        return picture_of(value, self.file.parent, f"column '{roles.image}'")

    def _roles(self, batch: Any) -> Roles:
        return shard_roles(self._head(batch), self.columns, self.layout)

    def _head(self, batch: Any) -> Table:
        head, names = batch.slice(0, 64), batch.schema.names
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DamagedShardError(f"{self.name} has two columns '{twice}'; rename one of them")
        return Table(self.name, {name: head.column(name).to_pylist() for name in names})

    def first_rows(self) -> tuple[Table, Roles] | None:
        """See :meth:`.Shard.first_rows`."""
        batch = next(self._batches(0, 64), None)
        return None if batch is None else (self._head(batch), self._roles(batch))

    def _batches(self, start: int, size: int) -> Iterator[Any]:
        """Rows from ``start`` on, ``size`` at a time whatever the row groups."""
        import pyarrow as pa

        waiting: list[Any] = []
        rows = 0
        for batch in self._read(start, size):
            waiting.append(batch)
            rows += len(batch)
            while rows >= size:
                whole = pa.Table.from_batches(waiting).slice(0, rows)
                yield _joined(whole.slice(0, size))
                waiting, rows = whole.slice(size).to_batches(), rows - size
        if rows:
            yield _joined(pa.Table.from_batches(waiting))

    def _read(self, start: int, size: int) -> Iterator[Any]:
        try:
            from pyarrow import ArrowException, parquet
        except ImportError as error:
            raise DataError(
                f"{self.name}: to read Parquet takes pyarrow, which is not installed: "
                "pip install 'protocl[parquet]'"
            ) from error
        try:
            # One thread: after a fork those of the process before are not there.
            with parquet.ParquetFile(self.file, **_OPENED) as file:
                groups, skipped = _groups_from(file.metadata, start)
                for batch in file.iter_batches(size, row_groups=groups, use_threads=False):
                    if skipped < len(batch):
                        yield batch.slice(skipped)
                    skipped = max(0, skipped - len(batch))
        except (ArrowException, OSError) as error:
            raise DamagedShardError(
                f"{self.name} cannot be read as Parquet ({str(error).splitlines()[0]}); restore it "
                "from a copy"
            ) from error


def _encoded(labels: Any) -> Any:
    """Labels as numbers of what they are; of a dictionary as well, which may name one twice."""
    from pyarrow import ArrowException, types

    plain = labels.dictionary_decode() if types.is_dictionary(labels.type) else labels
    try:
        return plain.dictionary_encode()
    except ArrowException as error:
        raise DataError(f"labels are {labels.type}; expected texts or whole numbers") from error


def _groups_from(metadata: Any, start: int) -> tuple[list[int], int]:
    """The row groups that hold ``start`` and what follows, and the rows before it in the first."""
    first = 0
    while first < metadata.num_row_groups and metadata.row_group(first).num_rows <= start:
        start -= metadata.row_group(first).num_rows
        first += 1
    return list(range(first, metadata.num_row_groups)), start


def _joined(table: Any) -> Any:
    (batch,) = table.combine_chunks().to_batches() or [None]
    return batch


def _numbers(batch: Any, columns: Sequence[str]) -> np.ndarray:
    """Columns of numbers, or of lists of numbers, side by side ``(N, D)``."""
    parts = [_of_column(batch.column(name), name, len(batch)) for name in columns]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _of_column(values: Any, name: str, rows: int) -> np.ndarray:
    from pyarrow import types

    lists = types.is_list(values.type) or types.is_large_list(values.type)
    flat = values
    if values.null_count == 0 and (lists or types.is_fixed_size_list(values.type)):
        flat = values.flatten()
        lengths = values.value_lengths().unique().to_pylist() if lists else [0]
        if len(lengths) > 1:
            raise DataError(f"column '{name}' has lists of {sorted(lengths)[:2]} numbers")
    if flat.null_count:
        raise DataError(f"column '{name}' has no value")
    kind = flat.type
    if not (types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind)):
        raise DataError(f"column '{name}' is {values.type}; expected numbers or lists of numbers")
    numbers: np.ndarray = flat.to_numpy(zero_copy_only=False)
    return numbers.reshape(rows, -1)
