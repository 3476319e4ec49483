"""Tar files as WebDataset has them: consecutive files of one name make a sample.

``a/0001.jpg`` and ``a/0001.cls`` are the sample ``a/0001``: what follows the first dot of a file's
name says what it holds. Names that begin with a dot or with ``__`` are passed over, as there.

Source: Aizman et al., High Performance I/O for Large Scale Deep Learning, 2019;
https://github.com/webdataset/webdataset.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from lzma import LZMAError
from pathlib import Path
from typing import Any, Self

from protocl.data.folder import ENDINGS
from protocl.data.readers.roles import USUAL
from protocl.data.shards.shard import DamagedShardError, Entry, Fault, Shard

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SAMPLE_FIELDS = (*(ending.removeprefix(".") for ending in ENDINGS), "npy")
LABEL_FIELDS = ("cls", "label", "json")
_JSON = "json."
_SHOWN = 4
"""Files of a sample that a message names."""


@dataclass(eq=False)
class TarShard(Shard):
    """A tar file, which may be compressed.

    Attributes:
        file: the file.
        sample: ending of the files of samples; by default the one that there is of the usual.
        label: ending of the files of labels (``json.KEY`` for a key in one), likewise.
    """

    file: Path
    sample: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        self.name = str(self.file)
        self.sample, self.label = _ending(self.sample), _ending(self.label)

    @property
    def home(self) -> Path:
        """See :attr:`.Shard.home`."""
        return self.file

    def entries(self, start: int) -> Iterator[Entry | Fault]:
        """See :meth:`.Shard.entries`; what lies before ``start`` is passed over unread."""
        place, seen, group = 0, set[str](), _Group("")
        try:
            with tarfile.open(self.file, "r|*", bufsize=_BLOCK, tarinfo=_Header) as archive:
                for member in archive:
                    vars(archive)["members"].clear()  # the list would grow with the file
                    key, ending = _cut(member.name)
                    if member.isdir() or not ending:
                        continue
                    if key != group.key:
                        yield from self._ended(group, seen, place, start)
                        place += bool(group.files)
                        group = _Group(key)
                    read = place >= start and member.isfile() and self._is_used(ending)
                    group.put(ending, archive.extractfile(member) if read else None)
        except _FAILURES as error:
            raise DamagedShardError(
                f"{self.name} is damaged or cut short after sample {place} "
                f"({str(error) or type(error).__name__}); restore it from a copy"
            ) from error
        yield from self._ended(group, seen, place, start)

    def _is_used(self, ending: str) -> bool:
        label = LABEL_FIELDS if self.label is None else (self.label.split(".")[0], self.label)
        sample = SAMPLE_FIELDS if self.sample is None else (self.sample,)
        return ending in label or ending in sample

    def _ended(
        self, group: _Group, seen: set[str], place: int, start: int
    ) -> Iterator[Entry | Fault]:
        """What a group of files is, once the next one begins."""
        again = group.key in seen
        seen.add(group.key)
        if not group.files or place < start:
            return
        if again or group.twice:
            what = f"its file .{group.twice}" if group.twice else "the name"
            yield Fault(
                "duplicate name",
                f"{self.name}: sample '{group.key}' has {what} twice; expected each name once, and "
                "the files of a sample one after the other",
            )
            return
        fields = SAMPLE_FIELDS if self.sample is None else (self.sample,)
        found = [field for field in fields if field in group.files]
        if len(found) > 1:
            yield Fault(
                "damaged sample",
                f"{self.name}: sample '{group.key}' has the files .{' and .'.join(found)}; say "
                "which is the sample with --sample",
            )
            return
        if not found:
            yield self._without_sample(group, fields)
            return
        try:
            yield Entry(group.key, group.files[found[0]], self._label(group))
        except (ValueError, RecursionError) as error:
            what = f"{self.name}: sample '{group.key}'"
            yield Fault("no label", f"{what} has JSON that cannot be read: {error}")

    def _without_sample(self, group: _Group, fields: Sequence[str]) -> Fault:
        names = sorted(f".{ending}" for ending in group.files)
        more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
        return Fault(
            "damaged sample",
            f"{self.name}: sample '{group.key}' has {', '.join(names[:_SHOWN] + more)}; expected "
            f"one of .{', .'.join(fields)}: what follows the first dot of a name says what a file "
            "is; name the ending with --sample, or rename the files",
        )

    def _label(self, group: _Group) -> Any:
        if self.label is not None and self.label.startswith(_JSON):
            return _in_json(group.files, (self.label.removeprefix(_JSON),))
        if self.label is not None:
            return group.files.get(self.label)
        found = next((field for field in LABEL_FIELDS if field in group.files), None)
        if found == "json":
            return _in_json(group.files, USUAL["label"])
        return None if found is None else group.files[found]


@dataclass(eq=False)
class _Group:
    """The files of one sample, by their endings, as far as they are of use."""

    key: str
    files: dict[str, bytes | None] = field(default_factory=dict)
    twice: str = ""

    def put(self, ending: str, content: Any) -> None:
        if ending in self.files:
            self.twice = ending
        self.files[ending] = None if content is None else content.read()


class _Header(tarfile.TarInfo):
    """The header of a file in a tar file, which has to be whole.

    Python takes a damaged header in the middle, or a file without its end, for the end.
    """

    @classmethod
    def fromtarfile(cls, archive: Any) -> Self:
        try:
            return super().fromtarfile(archive)
        except _END_MARK:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} in place of a file or the end mark") from error


_BLOCK = 1 << 20
_END_MARK: Any = vars(tarfile)["EOFHeaderError"]
_FAILURES = (tarfile.TarError, OSError, EOFError, zlib.error, LZMAError)


def _cut(path: str) -> tuple[str, str]:
    """The name of the sample that a file belongs to, and the file's ending."""
    folder, _, name = path.rpartition("/")
    stem, _, ending = name.partition(".")
    if not stem or stem.startswith("__"):
        return "", ""
    return (f"{folder}/{stem}" if folder else stem), ending.lower()


def _ending(text: str | None) -> str | None:
    """An ending as a user writes it, perhaps with its dot, in small letters as here."""
    if text is None:
        return None
    text = text.removeprefix(".")
    return text if text.lower().startswith(_JSON) else text.lower()


def _in_json(files: Mapping[str, bytes | None], keys: tuple[str, ...]) -> Any:
    """The value of the first of ``keys`` in the sample's JSON; None where there is none."""
    content = json.loads(files.get("json") or b"{}")
    named = content if isinstance(content, dict) else {}
    return next((named[key] for key in keys if key in named), None)
