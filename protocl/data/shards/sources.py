"""What a user names as data: tar and Parquet files, folders of them, data sets of ``datasets``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protocl.data.config import ColumnsConfig
from protocl.data.shards import parquet, tar
from protocl.data.shards.hugging_face import PREFIX, hugging_face_shards
from protocl.data.shards.shard import Shard
from protocl.errors import ConfigError, DataError

SUFFIXES = (*tar.SUFFIXES, *parquet.SUFFIXES)


@dataclass(frozen=True)
class Fields:
    """Which part of an entry is what, where names do not say.

    Attributes:
        sample: ending of the files of samples in a tar file, or the column of pictures.
        label: ending of the files of labels (``json.KEY``), or the column of classes.
        features: columns of numbers.
    """

    sample: str | None = None
    label: str | None = None
    features: tuple[str, ...] | None = None

    @property
    def columns(self) -> ColumnsConfig:
        """The same of a table."""
        features = None if self.features is None else list(self.features)
        return ColumnsConfig(label=self.label, image=self.sample, features=features)


def shards_of(sources: Sequence[str], fields: Fields) -> list[Shard]:
    """The shards of all sources, in the order of their names, whatever order they come in.

    Args:
        sources: files, folders with such files below them, or ``hf:NAME`` of a data set that the
            library ``datasets`` streams.
        fields: which part of an entry is what.

    Raises:
        ConfigError: one file is given twice, perhaps by a link.
        DataError: a source is absent, holds no shard, or is of another kind.
    """
    shards: list[Shard] = []
    for source in sources:
        if source.startswith(PREFIX):
            shards += hugging_face_shards(source, fields.columns)
        else:
            shards += [_shard(file, fields) for file in _files(Path(source).expanduser())]
    _require_distinct(shards)
    return sorted(shards, key=_order)


def _order(shard: Shard) -> tuple[str, int]:
    """By name; parts of a data set by number."""
    place = getattr(shard, "place", 0)
    return (shard.name if shard.home is not None else getattr(shard, "source", ""), place)


def _shard(file: Path, fields: Fields) -> Shard:
    if file.name.lower().endswith(tar.SUFFIXES):
        return tar.TarShard(file, fields.sample, fields.label)
    return parquet.ParquetShard(file, fields.columns)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = [file for file in path.rglob("*") if _is_shard(file)]
        if not found:
            raise DataError(f"{path} holds no shards; expected files of {', '.join(SUFFIXES)}")
        return found
    if not path.exists():
        raise DataError(f"{path} does not exist; expected a shard, a folder of them, or hf:NAME")
    if not _is_shard(path):
        raise DataError(f"{path} is no shard; expected a file of {', '.join(SUFFIXES)}")
    return [path]


def _is_shard(file: Path) -> bool:
    hidden = file.name.startswith(".")
    return not hidden and file.name.lower().endswith(SUFFIXES) and file.is_file()


def _require_distinct(shards: Sequence[Shard]) -> None:
    known: dict[tuple[int, int] | str, str] = {}
    for shard in shards:
        status = None if shard.home is None else shard.home.stat()
        key = shard.name if status is None else (status.st_dev, status.st_ino)
        if key in known:
            raise ConfigError(
                f"{shard.name} and {known[key]} are one shard; give it once, or its samples would "
                "count twice"
            )
        known[key] = shard.name
