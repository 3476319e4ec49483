"""How far a stream has come, on disk: sums, and the entries of each shard that are in them."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocl.data.readers.values import Label
from protocl.data.shards.shard import Fault, Portion, Shard
from protocl.errors import ConfigError, DataError
from protocl.io.atomic import atomic_write, discard_partial
from protocl.memory import PrototypeMemory

FORMAT = "protocl-stream-1"
PROGRESS = "progress.json"
"""Says how far a stream has come; without it a folder of progress holds nothing of use."""
_TOLD = 100
"""Faults whose messages are kept."""
_SHARE = 20
"""Progress is written at most every so many times as long as that takes."""


@dataclass
class Progress:
    """What has been read.

    Attributes:
        done: entries of each shard, by place, that are in the sums or were skipped.
        ended: places of the shards that were read to their end.
        samples: in the sums.
        skipped: faults by kind.
        told: messages of the first of them.
        labels: of the classes, by id.
    """

    done: dict[int, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    samples: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)
    labels: dict[int, Label] = field(default_factory=dict)

    def note(self, portion: Portion) -> None:
        """Count a portion that was read."""
        self.done[portion.shard] = portion.stop
        if portion.last:
            self.ended.add(portion.shard)
        self.samples += 0 if portion.x is None else len(portion.x)
        self.skip(portion.faults)

    def skip(self, faults: Sequence[Fault]) -> None:
        """Count entries that are left out."""
        self.skipped.update(fault.kind for fault in faults)
        self.told += [fault.message for fault in faults][: _TOLD - len(self.told)]

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON, which has no numbers for keys."""
        return {
            "done": [[place, stop] for place, stop in sorted(self.done.items())],
            "ended": sorted(self.ended),
            "samples": self.samples,
            "skipped": dict(sorted(self.skipped.items())),
            "told": self.told,
            "labels": [[number, label] for number, label in sorted(self.labels.items())],
        }

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> Progress:
        """What :meth:`as_dict` gave."""
        return cls(
            dict(written["done"]),
            set(written["ended"]),
            written["samples"],
            Counter(written["skipped"]),
            list(written["told"]),
            dict(written["labels"]),
        )


class ProgressFolder:
    """Progress and sums in a folder, of which a killed process leaves the last that was whole.

    Sums are written first, under a new name, and the file that names them is then replaced.

    Args:
        folder: of this stream alone.
        settings: what has to be the same when it is continued, by what it is called in messages.
        shards: all of them.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], shards: Sequence[Shard]) -> None:
        self.folder = folder
        self._settings = json.loads(json.dumps(settings))
        self._shards = [[shard.name, shard.identity()] for shard in shards]
        self._number = 0
        self._next = 0.0

    @property
    def file(self) -> Path:
        """The file that says how far the stream has come."""
        return self.folder / PROGRESS

    def load(self) -> tuple[Progress, PrototypeMemory] | None:
        """What was written last, or None.

        Raises:
            ConfigError: settings or shards are others than those it was written with.
            DataError: it is damaged, or a shard of which something was read has changed.
        """
        if not self.file.exists():
            return None
        try:
            written = json.loads(self.file.read_text(encoding="utf-8"))
            progress = Progress.of(written["progress"])
            memory = PrototypeMemory.load(self.folder / written["memory"])
            known = written["shards"]
            self._number = written["number"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.file} is damaged ({type(error).__name__}: {error}); remove {self.folder} "
                "and begin anew"
            ) from error
        self._require_same(written["settings"], known, progress)
        return progress, memory

    def _require_same(
        self, settings: Mapping[str, Any], known: Sequence[Any], progress: Progress
    ) -> None:
        anew = f"give what was given before, or remove {self.folder} and begin anew"
        for key, value in self._settings.items():
            if settings.get(key) != value:
                raise ConfigError(
                    f"{self.folder} was begun with {key} {settings.get(key)}, not {value}; {anew}"
                )
        if [name for name, _ in known] != [name for name, _ in self._shards]:
            raise ConfigError(f"{self.folder} was begun with other shards; {anew}")
        for place, (now, before) in enumerate(zip(self._shards, known, strict=True)):
            if now != before and (progress.done.get(place) or place in progress.ended):
                raise DataError(
                    f"{now[0]} has changed since part of it was read; restore it, or remove "
                    f"{self.folder} and begin anew"
                )

    def save(self, progress: Progress, memory: PrototypeMemory, every: float) -> None:
        """Write progress and sums; the next time is ``every`` seconds later at the earliest."""
        begin = time.monotonic()
        self._number += 1
        name = f"memory-{self._number:06d}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        discard_partial(self.folder)
        memory.save(self.folder / name)
        content = {
            "format": FORMAT,
            "number": self._number,
            "memory": name,
            "settings": self._settings,
            "shards": self._shards,
            "progress": progress.as_dict(),
        }
        atomic_write(self.file, json.dumps(content) + "\n")
        for old in self.folder.glob("memory-*.safetensors"):
            if old.name != name:
                old.unlink()
        now = time.monotonic()
        self._next = now + max(every, _SHARE * (now - begin))

    @property
    def is_due(self) -> bool:
        """Whether progress is to be written."""
        return time.monotonic() >= self._next

    def wait(self, every: float) -> None:
        """Begin to count: progress is due after ``every`` seconds."""
        self._next = time.monotonic() + every

    def remove(self) -> None:
        """Forget the stream; the file that tells of it goes first."""
        self.file.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
