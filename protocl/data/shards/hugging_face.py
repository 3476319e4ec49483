"""Data sets that the library ``datasets`` streams: of the hub, or files of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocl.data.config import ColumnsConfig
from protocl.data.readers.columns import Table
from protocl.data.readers.roles import Roles
from protocl.data.readers.table import picture_of
from protocl.data.shards.layout import shard_roles
from protocl.data.shards.shard import DamagedShardError, Entry, Fault, Shard
from protocl.errors import DataError

PREFIX = "hf:"
_ROWS = 4096
"""Of a data set on disk, in a shard of it at the least."""
_MOST = 64


@dataclass(eq=False)
class HuggingFaceShard(Shard):
    """One part of a data set.

    Attributes:
        source: as it was given.
        place, parts: which of how many parts.
        columns: what its columns are, where their names do not say.
    """

    source: str
    place: int
    parts: int
    columns: ColumnsConfig

    def __post_init__(self) -> None:
        self.name = f"{self.source}: part {self.place + 1} of {self.parts}"

    def identity(self) -> list[int]:
        """Size and time of change of the files, where the data set lies on this machine."""
        path = Path(_cut(self.source)[0]).expanduser()
        files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
        status = [file.stat() for file in files if file.is_file()]
        return [sum(s.st_size for s in status), max((s.st_mtime_ns for s in status), default=0)]

    def entries(self, start: int) -> Iterator[Entry | Fault]:
        """See :meth:`.Shard.entries`."""
        opened = _opened(self.source).shard(num_shards=self.parts, index=self.place)
        pictures = _pictures_of(opened)
        roles = None
        try:
            for number, row in enumerate(opened.skip(start) if start else opened, start=start + 1):
                roles = roles or self._roles(row, pictures)
                label = _named(opened.features, roles.label, row[roles.label])
                yield self._entry(f"row {number}", row, roles, label)
        except (DamagedShardError, GeneratorExit):
            raise
        except Exception as error:  # the library raises errors of a dozen kinds
            raise DamagedShardError(f"{self.name} cannot be read: {_first_line(error)}") from error

    def _entry(self, name: str, row: dict[str, Any], roles: Any, label: Any) -> Entry | Fault:
        try:
            if roles.image is None:
                numbers = [row[column] for column in roles.features]
                return Entry(name, numbers[0] if len(numbers) == 1 else numbers, label)
            folder = Path(_cut(self.source)[0]).expanduser()
            return Entry(name, picture_of(row[roles.image], folder, name), label)
        except DataError as error:
            return Fault("damaged sample", f"{self.name}: {error}")

    def first_rows(self) -> tuple[Table, Roles] | None:
        """See :meth:`.Shard.first_rows`."""
        opened = _opened(self.source).shard(num_shards=self.parts, index=self.place)
        try:
            row = next(iter(opened), None)
        except Exception as error:  # as above
            raise DamagedShardError(f"{self.name} cannot be read: {_first_line(error)}") from error
        return None if row is None else (self._table(row), self._roles(row, _pictures_of(opened)))

    def _table(self, row: dict[str, Any]) -> Table:
        return Table(self.name, {name: [value] for name, value in row.items()})

    def _roles(self, row: dict[str, Any], pictures: list[str]) -> Roles:
        return shard_roles(self._table(row), self.columns, self.layout, pictures)


def hugging_face_shards(source: str, columns: ColumnsConfig) -> list[HuggingFaceShard]:
    """The parts of a data set, named ``hf:PATH`` or ``hf:NAME``, with ``@SPLIT`` where not train.

    Raises:
        DataError: ``datasets`` is not installed, or the data are absent or unreachable.
    """
    if not _cut(source)[0]:
        raise DataError(f"{source} has no name; expected hf:NAME, hf:FOLDER or hf:NAME@SPLIT")
    parts = _opened(source).num_shards
    return [HuggingFaceShard(source, place, parts, columns) for place in range(parts)]


def _opened(source: str) -> Any:
    """The data set as one that is iterated, pictures as the content of their files."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{source} needs the library datasets, which is not installed: "
            "pip install 'protocl[datasets]'"
        ) from error
    path, split = _cut(source)
    place = Path(path).expanduser()
    try:
        if any((place / name).is_file() for name in ("dataset_dict.json", "state.json")):
            opened = _on_disk(datasets.load_from_disk(str(place)), split)
        else:
            name = str(place) if place.exists() else path
            opened = datasets.load_dataset(name, split=split or "train", streaming=True)
    except Exception as error:  # as above
        raise DataError(f"{source} cannot be opened by datasets: {_first_line(error)}") from error
    for column, kind in (opened.features or {}).items():
        if _is_picture(kind):
            opened = opened.cast_column(column, datasets.Image(decode=False))
    return opened


def _on_disk(saved: Any, split: str) -> Any:
    part = _split_of(saved, split or "train") if isinstance(saved, dict) else saved
    return part.to_iterable_dataset(num_shards=max(1, min(_MOST, len(part) // _ROWS)))


def _split_of(saved: dict[str, Any], split: str) -> Any:
    if split in saved:
        return saved[split]
    raise ValueError(f"no split '{split}': name one of {', '.join(saved)} after @")


def _cut(source: str) -> tuple[str, str]:
    """The path or name of a data set, and its split, empty where none is given."""
    path, _, split = source.removeprefix(PREFIX).partition("@")
    return path, split


def _pictures_of(opened: Any) -> list[str]:
    return [name for name, kind in (opened.features or {}).items() if _is_picture(kind)]


def _is_picture(kind: Any) -> bool:
    return type(kind).__name__ == "Image"


def _named(features: Any, column: str, value: Any) -> Any:
    """The name of a class that a ``ClassLabel`` numbers; -1 of it is no label."""
    names = getattr((features or {}).get(column), "names", None)
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
