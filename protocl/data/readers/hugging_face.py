"""Data sets of the library ``datasets``: on the Hugging Face hub, or files of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from protocl.data.arrays import ArrayData
from protocl.data.config import BenchmarkConfig, refuse
from protocl.data.readers.columns import Table
from protocl.data.readers.keys import part_named
from protocl.data.readers.table import from_table
from protocl.errors import ConfigError, DataError

_PART = "split"
_FILES = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet",
          ".arrow": "arrow"}  # fmt: skip


def load_hugging_face(config: BenchmarkConfig) -> ArrayData:
    """A data set that the library ``datasets`` reads: a name on the Hugging Face hub, or a folder.

    ``path`` is a folder that ``save_to_disk`` wrote, a file (``.csv``, ``.json``, ``.parquet``,
    ``.arrow``), a folder of such files or of images by class, or else a name on the hub;
    ``split`` is then its configuration. ``benchmark.columns.*`` says what its columns are; classes
    keep the names and numbers of a ``ClassLabel``. Where there is neither a test nor a validation
    split, ``benchmark.test`` says which share of each class is for the test.

    Raises:
        ConfigError: no path, a column that is not there, or nothing says what is for the test.
        DataError: ``datasets`` is not installed, or the data are absent, damaged or unreachable.
    """
    refuse(config, "labels")
    if config.path is None:
        raise ConfigError(
            f"benchmark '{config.name}' reads what the library datasets does: give "
            "benchmark.path=NAME of a data set on the Hugging Face hub, or a folder"
        )
    return from_datasets(_opened(config.path, config), config)


def from_datasets(opened: Any, config: BenchmarkConfig) -> ArrayData:
    """A ``datasets.Dataset``, or a dictionary of them by split, as data.

    Arguments and errors are those of :func:`load_hugging_face`.
    """
    splits = dict(opened) if isinstance(opened, Mapping) else {"train": opened}
    used = _used(splits, config)
    first = next(iter(used.values()))
    columns: dict[str, Sequence[Any]] = {
        name: _Joined([part[name] for part in used.values()]) for name in first.column_names
    }
    if len(used) > 1:
        columns[_PART] = [part for part, rows in used.items() for _ in range(len(rows))]
    kinds = {name: type(kind).__name__ for name, kind in first.features.items()}
    names = {n: list(first.features[n].names) for n, k in kinds.items() if k == "ClassLabel"}
    if config.columns.label is None and len(names) == 1:
        config = replace(config, columns=replace(config.columns, label=next(iter(names))))
    table = Table(config.path or "the data set", columns, _folder(config), names)
    pictures = [name for name, kind in kinds.items() if kind == "Image"]
    return from_table(table, config, pictures=pictures)


class _Joined(Sequence[Any]):
    """Columns one after the other; a picture is decoded when it is asked for."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[Any]:
        return (value for part in self.parts for value in part)

    def __getitem__(self, row: Any) -> Any:
        for part in self.parts:
            if row < len(part):
                return part[row]
            row -= len(part)
        raise IndexError(row)


def _used(splits: dict[str, Any], config: BenchmarkConfig) -> dict[str, Any]:
    """The splits for training and for the test, or the only one."""
    if not splits or not all(len(rows) for rows in splits.values()):
        raise DataError(f"{config.path}: the data set holds no samples")
    if len(splits) == 1:
        return dict(splits)
    parts = {part_named(name): rows for name, rows in reversed(splits.items())}
    test = parts.get("test", parts.get("validation"))
    if "train" not in parts or test is None:
        raise DataError(
            f"{config.path} has the splits {', '.join(splits)}; expected train, and test or "
            "validation"
        )
    return {"train": parts["train"], "test": test}


def _opened(path: str, config: BenchmarkConfig) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"benchmark '{config.name}' needs the library datasets, which is not installed: "
            "pip install 'protocl[datasets]'"
        ) from error
    place, cache = Path(path).expanduser(), str(Path(config.root).expanduser() / "hugging_face")
    try:
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            return datasets.load_from_disk(str(place))
        if place.is_file():
            kind = _FILES.get(place.suffix.lower())
            if kind is None:
                raise DataError(f"{place}: expected one of {', '.join(_FILES)}, or a folder")
            return datasets.load_dataset(kind, data_files=str(place), cache_dir=cache)
        name = str(place) if place.exists() else path
        return datasets.load_dataset(name, config.split, cache_dir=cache)
    # The library and what it reaches the hub with raise errors of a dozen kinds.
    except Exception as error:
        if isinstance(error, DataError):
            raise
        raise _unreachable(path, place, error) from error


def _unreachable(path: str, place: Path, error: Exception) -> DataError:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    if place.exists():
        return DataError(f"{place} cannot be read by the library datasets ({reason})")
    return DataError(
        f"'{path}' is no file or folder here, and could not be fetched from the Hugging Face hub "
        f"({reason}); without a network, load it on another machine, save it there with "
        "save_to_disk(FOLDER), and give benchmark.path=FOLDER"
    )


def _folder(config: BenchmarkConfig) -> Path:
    place = Path(config.path or "").expanduser()
    return place if place.is_dir() else place.parent
