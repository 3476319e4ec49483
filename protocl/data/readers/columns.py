"""Tables as columns: CSV with the library of Python, Parquet with pyarrow."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from protocl.errors import DataError

_DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Attributes:
        where: what the table is called in messages.
        columns: values by name; of a CSV file texts, empty where there is none.
        folder: where relative paths in it begin.
        names: the names of the classes that a column numbers, where it says them.
        decimal_comma: whether numbers may be written as ``1,5``.
    """

    where: str
    columns: Mapping[str, Sequence[Any]]
    folder: Path = Path()
    names: Mapping[str, list[str]] = field(default_factory=dict)
    decimal_comma: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


def read_table(path: Path) -> Table:
    """Read a ``.csv`` (``.tsv``, ``.txt``) or ``.parquet`` file.

    The delimiter of a CSV file is the comma, semicolon, tab or bar that cuts its first line into
    most parts. A byte-order mark and quotes are understood.

    Raises:
        DataError: the file is absent, damaged, empty, of another kind, not UTF-8, has two columns
            of one name, or rows of another length than its first.
    """
    if not path.is_file():
        raise DataError(f"{path} is no file; give the table with benchmark.path=FILE.csv")
    if path.suffix.lower() in (".parquet", ".pq"):
        return _parquet(path)
    if path.suffix.lower() in (".csv", ".tsv", ".txt"):
        return _csv(path)
    raise DataError(f"{path} is neither .csv nor .parquet; save the table as one of them")


def _csv(path: Path) -> Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = _delimiter(file.readline())
            file.seek(0)
            rows = [row for row in csv.reader(file, delimiter=delimiter, strict=True) if row]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from error
    header = [name.strip() for name in rows[0]] if rows else []
    _require_distinct(path, header)
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(header):
            raise DataError(
                f"{path}: row {number} after the header has {len(row)} values, the header "
                f"{len(header)}; put values that hold the delimiter '{delimiter}' in quotes"
            )
    _require_rows(path, len(rows) - 1)
    values = (list(map(str.strip, column)) for column in zip_longest(*rows[1:]))
    columns = dict(zip(header, values, strict=True))
    return Table(str(path), columns, path.parent, decimal_comma=delimiter == ";")


def _delimiter(line: str) -> str:
    return max(_DELIMITERS, key=lambda sign: len(next(csv.reader([line], delimiter=sign), [])))


def _parquet(path: Path) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(
            f"{path}: to read Parquet takes pyarrow, which is not installed: pip install pyarrow"
        ) from error
    try:
        file = parquet.ParquetFile(path, page_checksum_verification=True)
        _require_distinct(path, file.schema_arrow.names)
        content = file.read()
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    _require_rows(path, content.num_rows)
    columns = {name: content.column(name).to_pylist() for name in content.column_names}
    return Table(str(path), columns, path.parent)


def _require_distinct(path: Path, header: Sequence[str]) -> None:
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise DataError(f"{path} has two columns '{twice[0]}'; give each a name of its own")


def _require_rows(path: Path, count: int) -> None:
    if count < 1:
        raise DataError(f"{path} holds no samples; expected a header and a row for each")
