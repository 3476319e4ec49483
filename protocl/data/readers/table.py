"""Tables of features or of pictures, with their classes and what else is known of each row."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protocl.data.arrays import ArrayData
from protocl.data.config import BenchmarkConfig, refuse
from protocl.data.folder import read_images
from protocl.data.labels import to_class_ids
from protocl.data.pictures import decoded
from protocl.data.readers.columns import Table, read_table
from protocl.data.readers.keys import part_named
from protocl.data.readers.roles import Roles, roles_of
from protocl.data.readers.values import (
    has_decimal_comma,
    labels,
    moments,
    numbers,
    refuse_thousands,
    require_all,
)
from protocl.data.samples import features_of
from protocl.data.shares import rows_for_test
from protocl.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


def load_table(config: BenchmarkConfig) -> ArrayData:
    """The table at ``path``, a ``.csv`` or ``.parquet`` file with a header and a row a sample.

    ``benchmark.columns.*`` says what the columns are, where their names do not
    (:class:`.ColumnsConfig`). Without a column that says which rows are for the test,
    ``benchmark.test`` says which share of each class is.

    Raises:
        ConfigError: no path, a column that is not there, or nothing says which rows are for the
            test.
        DataError: the file is absent or damaged, or a value is missing or of the wrong kind.
        CapacityError: the pictures would not fit in memory.
    """
    refuse(config, "split", "labels")
    if config.path is None:
        raise ConfigError(f"benchmark '{config.name}' reads a table: give benchmark.path=FILE.csv")
    return from_table(read_table(Path(config.path).expanduser()), config)


def from_table(
    table: Table, config: BenchmarkConfig, *, pictures: Collection[str] = ()
) -> ArrayData:
    """The samples of a table.

    Args:
        table: texts, numbers, pictures (paths or PIL's), lists of numbers.
        config: ``columns``, ``test``, ``test_seed``, ``image_size`` and ``name`` are read.
        pictures: columns that hold pictures, whatever their names.

    Raises:
        ConfigError, DataError, CapacityError: as :func:`load_table`.
    """
    roles = roles_of(table, config.columns, pictures=pictures)
    if roles.image is None and config.image_size is not None:
        raise ConfigError(
            f"benchmark.image_size={config.image_size}: the samples of {table.where} are numbers"
        )
    y, names = _classes(table, roles.label)
    given, kept = _parts(table, roles.split)
    test = rows_for_test(y, names, given, config, table.where)
    rows = torch.arange(len(table))
    train_rows, test_rows = rows[kept & ~test], rows[kept & test]
    clients, client_names = _clients(table, roles.client, train_rows)
    x_train, x_test = _samples(table, roles, [train_rows, test_rows], config)
    return ArrayData(
        x_train, y[train_rows], x_test, y[test_rows], names, config.name,
        clients, client_names, _arrival(table, roles.time, y, train_rows),
    )  # fmt: skip


def _classes(table: Table, column: str) -> tuple[Tensor, list[str]]:
    what = f"{table.where}: column '{column}'"
    names: list[str] | None
    if column in table.names:
        require_all(table.columns[column], what)
        found, names = np.array(table.columns[column], dtype=np.int64), table.names[column]
    else:
        found, names = labels(table.columns[column], what)
    (y,), named = to_class_ids({what: found}, names)
    return y, named


def _parts(table: Table, column: str | None) -> tuple[Tensor | None, Tensor]:
    """Which rows are for the test, None where the table does not say, and which are used."""
    everything = torch.ones(len(table), dtype=torch.bool)
    if column is None:
        return None, everything
    values = table.columns[column]
    what = f"{table.where}: column '{column}'"
    require_all(values, what)
    named = [part_named(str(value)) for value in values]
    if None in named:
        row = named.index(None)
        raise DataError(
            f"{what}: row {row + 1} holds '{values[row]}'; expected train, test or validation"
        )
    return _asked(named, what), everything if "test" not in named else _used(named, what)


def _asked(parts: Sequence[str | None], what: str) -> Tensor:
    asked = "test" if "test" in parts else "validation"
    if asked not in parts or "train" not in parts:
        raise DataError(f"{what} names no row for {'the test' if 'train' in parts else 'training'}")
    return torch.tensor([part == asked for part in parts])


def _used(parts: Sequence[str | None], what: str) -> Tensor:
    used = torch.tensor([part != "validation" for part in parts])
    if not bool(used.all()):
        logger.warning("%s: %d rows for validation are left aside", what, int((~used).sum()))
    return used


def _samples(
    table: Table, roles: Roles, parts: Sequence[Tensor], config: BenchmarkConfig
) -> list[Tensor]:
    """The samples of each part, given as row numbers."""
    if roles.image is None:
        x = _numbers(table, roles.features)
        return [x[rows] for rows in parts]
    column = table.columns[roles.image]
    what = f"{table.where}: column '{roles.image}'"
    chosen = [_pictures(table, column, rows.tolist(), what) for rows in parts]
    return [read_images(pictures, what, config.image_size) for pictures in chosen]


def _numbers(table: Table, features: Sequence[str]) -> Tensor:
    decimal_comma = table.decimal_comma and _commas_are_decimal(table, features)
    parts = [
        numbers(table.columns[name], f"{table.where}: column '{name}'",
                decimal_comma=decimal_comma).reshape(len(table), -1)
        for name in features
    ]  # fmt: skip
    names = [name for name, part in zip(features, parts, strict=True) for _ in part[0]]
    x = features_of(np.concatenate(parts, axis=1), f"{table.where}: features", names)
    return torch.from_numpy(x)


def _commas_are_decimal(table: Table, features: Sequence[str]) -> bool:
    """Whether numbers of the table have decimal commas, if they have commas at all.

    Raises:
        DataError: the commas are as good as certain to separate thousands.
    """
    columns = {name: table.columns[name] for name in features}
    if not any(map(has_decimal_comma, columns.values())):
        for name, values in columns.items():
            refuse_thousands(values, f"{table.where}: column '{name}'")
    return any("," in v for values in columns.values() for v in values if isinstance(v, str))


def _pictures(table: Table, column: Sequence[Any], rows: list[int], what: str) -> list[Any]:
    """Pictures of these rows; paths are relative to the table's own folder."""
    chosen = [column[row] for row in rows]
    require_all(chosen, what)
    pictures = [picture_of(entry, table.folder, what) for entry in chosen]
    absent = [path for path in pictures if isinstance(path, Path) and not path.is_file()]
    if absent:
        raise DataError(
            f"{what} names {absent[0]}, which does not exist ({len(absent)} of {len(pictures)} do "
            f"not); expected paths relative to {table.folder}"
        )
    return pictures


def picture_of(entry: Any, folder: Path, what: str) -> Any:
    """What a table has in place of a picture, as a path or a picture.

    Args:
        entry: a path, relative to ``folder``; the content of a file as Parquet holds it; or one of
            PIL's pictures.
        folder: of the table.
        what: names the entry in messages.

    Raises:
        DataError: the content of a file is damaged, or no image.
    """
    if isinstance(entry, dict):
        content = entry.get("bytes")
        entry = entry.get("path") or entry if content is None else content
    if isinstance(entry, str):
        return folder / Path(entry.replace("\\", "/")).expanduser()
    return decoded(entry, what) if isinstance(entry, bytes) else entry


def _clients(
    table: Table, column: str | None, rows: Tensor
) -> tuple[Tensor | None, tuple[str, ...]]:
    if column is None:
        return None, ()
    values = [table.columns[column][row] for row in rows.tolist()]
    require_all(values, f"{table.where}: column '{column}'")
    names, numbered = np.unique([str(value) for value in values], return_inverse=True)
    return torch.from_numpy(numbered.astype(np.int64)), tuple(names.tolist())


def _arrival(table: Table, column: str | None, y: Tensor, rows: Tensor) -> tuple[int, ...]:
    """Classes in the order of their first sample for training."""
    if column is None:
        return ()
    times = moments(table.columns[column], f"{table.where}: column '{column}'")[rows.numpy()]
    in_time = y[rows][torch.from_numpy(times.argsort(kind="stable"))]
    return tuple(dict.fromkeys(in_time.tolist()))
