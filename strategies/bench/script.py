"""A command of ours beside the script that a user would write (``protocl bench script``).

Both sides are whole processes, from the start of Python to the last file written, on the same
samples: :mod:`protocl.strategies.bench.scripts.plain` gives the same accuracies and as many
pictures. The first time is after the system was asked to forget the files of torch and numpy; with
one run it is the only time. What only a command gives (a checkpoint and a result after each
experience, TensorBoard's events, the model) is in its time.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from protocl.bench.comparison import Size, SpeedComparison, require_equal
from protocl.bench.peak_memory import MIB
from protocl.bench.processes import Finished, can_measure, cool, finish, in_turns, middle
from protocl.strategies.bench import scripts
from protocl.strategies.bench.script_data import Source, digits, from_cifar100

logger = logging.getLogger(__name__)

TARGET = 1.5
"""Most that a command may take, as a multiple of the script."""

LIST_LIMIT = 1.0
"""Seconds that ``protocl list`` may take."""

_TOLERANCE = 0.005
"""Most by which accuracies may differ: a few answers, where two classes are as near."""

_METHODS = ("nearest_mean", "slda", "fecam")


def measure(size: Size) -> Iterator[SpeedComparison]:
    """Each method on digits and on features of CIFAR-100, then encoding, then ``protocl list``."""
    if not can_measure():
        logger.warning("script: left out, since this system does not tell what a process took")
        return
    with tempfile.TemporaryDirectory(prefix="protocl bench ") as folder:
        for source in _sources(size, Path(folder)):
            for row in source.rows(size.rows or _METHODS):
                yield from _Race(source, row, Path(folder), size.runs).comparisons()
        if size.rows is None:
            yield _listing(Path(folder), size.runs)


def _sources(size: Size, folder: Path) -> Iterator[Source]:
    yield digits()
    if size.rows is not None:
        return
    if size.cifar100 is None:
        logger.warning("script: rows on CIFAR-100 are left out; --cifar100 PATH says where it is")
        return
    yield from from_cifar100(size.cifar100, size.per_class, folder)


@dataclass(frozen=True)
class _Race:
    """One method on one data set, ours and the script in turns."""

    source: Source
    method: str
    folder: Path
    runs: int

    def comparisons(self) -> Iterator[SpeedComparison]:
        cool([*torch.__path__, *np.__path__])
        cold = in_turns(self._ours, self._script, 1)
        warm = in_turns(self._ours, self._script, self.runs) if self.runs > 1 else cold
        difference = self._difference()
        row = partial(
            SpeedComparison, case=f"strategy={self.method}, {self.source.described}",
            kind="cost", threads=torch.get_num_threads(), difference=difference,
        )  # fmt: skip
        wall = [middle(runs, "wall") for runs in warm]
        spread = f"{_spread(warm[0])} against {_spread(warm[1])}"
        yield row(peer_name=f"script ({spread})", ours=wall[0], peer=wall[1], target=TARGET)
        ours, peer = (middle(runs, "processor") for runs in warm)
        yield row(peer_name="script, user and system time", ours=ours, peer=peer, target=TARGET)
        ours, peer = (middle(runs, "wall") for runs in cold)
        yield row(peer_name="script, the first time", ours=ours, peer=peer, target=None)
        ours, peer = (middle(runs, "peak") / MIB for runs in warm)
        yield row(peer_name="script, peak memory", ours=ours, peer=peer, target=None, unit="MiB")

    def _ours(self) -> Finished:
        shutil.rmtree(self._output, ignore_errors=True)
        if not self.source.cached:
            shutil.rmtree(self._cache, ignore_errors=True)
        settings = {
            **self.source.settings, "strategy": self.method, "seed": 1,
            "benchmark.shuffle_classes": "false", "cache": self._cache, "output": self._output,
        }  # fmt: skip
        return self._finish(_protocl("run", *(f"{k}={v}" for k, v in settings.items())))

    def _script(self) -> Finished:
        script = Path(scripts.__path__[0], "plain.py")
        words = [self.method, *self.source.arguments, str(self._plain)]
        return self._finish([sys.executable, str(script), *words])

    def _finish(self, command: Sequence[str]) -> Finished:
        return finish(command, torch.get_num_threads(), self.folder)

    def _difference(self) -> float:
        """Of the accuracies on what was seen until each experience."""
        (ours,) = self._output.rglob("result.json")
        matrices = (_accuracies(ours)["metrics"], _accuracies(self._plain / "result.json"))
        mine, theirs = (each["accuracy_matrix"] for each in matrices)
        off = [abs(a - b) for row, other in zip(mine, theirs, strict=True)
               for a, b in zip(row, other, strict=True)]  # fmt: skip
        means = [abs(float(np.mean(a) - np.mean(b))) for a, b in zip(mine, theirs, strict=True)]
        require_equal(f"strategy={self.method}", max(means), _TOLERANCE)
        return max(off)

    @property
    def _output(self) -> Path:
        return self.folder / "runs"

    @property
    def _plain(self) -> Path:
        return self.folder / "plain"

    @property
    def _cache(self) -> Path:
        return self.folder / "cache"


def _accuracies(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _listing(folder: Path, runs: int) -> SpeedComparison:
    seconds = [finish(_protocl("list"), torch.get_num_threads(), folder) for _ in range(runs)]
    return SpeedComparison(
        case="protocl list", peer_name=f"whole process ({_spread(seconds)})",
        ours=middle(seconds, "wall"), peer=None, kind="limit", target=LIST_LIMIT,
        threads=torch.get_num_threads(),
    )  # fmt: skip


def _protocl(*words: str) -> list[str]:
    return [sys.executable, "-m", "protocl", *words]


def _spread(runs: Sequence[Finished]) -> str:
    walls = [run.wall for run in runs]
    return f"{min(walls):.1f} to {max(walls):.1f} s"
