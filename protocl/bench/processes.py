"""Whole processes: the time from typing a command to its end, and the memory that it took."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

_TAIL = 2000
"""Characters of what a failed process said that are shown."""


@dataclass(frozen=True)
class Finished:
    """What one process took.

    Attributes:
        wall: seconds from its start to its end.
        processor: seconds of user and system time of all its threads; on a busy machine the
            steadier of the two.
        peak: bytes of its largest resident set.
    """

    wall: float
    processor: float
    peak: int


Quantity = Literal["wall", "processor", "peak"]


def middle(runs: Sequence[Finished], quantity: Quantity) -> float:
    """The median of a quantity."""
    return median(getattr(run, quantity) for run in runs)


def can_measure() -> bool:
    """Whether this system tells what a process took."""
    return hasattr(os, "wait4")


def finish(command: Sequence[str], threads: int, folder: Path) -> Finished:
    """Run ``command`` to its end.

    Args:
        command: program and arguments.
        threads: that it may compute with.
        folder: existing working folder; receives ``log.txt``, what the process said.

    Raises:
        RuntimeError: it failed; quotes the last of what it said.
    """
    log = folder / "log.txt"
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=_environment(os.environ, threads),
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said = log.read_text(encoding="utf-8", errors="replace")[-_TAIL:]
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {said}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Finished(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * unit)


def in_turns(
    ours: Callable[[], Finished], peer: Callable[[], Finished], runs: int
) -> tuple[list[Finished], list[Finished]]:
    """Both, ``runs`` times each, taking turns so that a busy machine disturbs both alike."""
    pairs = [(ours(), peer()) for _ in range(runs)]
    return [mine for mine, _ in pairs], [theirs for _, theirs in pairs]


def cool(folders: Sequence[str]) -> None:
    """Ask the system to drop the files below ``folders`` from its cache, as after a start.

    It keeps what other processes use; does nothing where the system takes no such advice.
    """
    advise = getattr(os, "posix_fadvise", None)
    if advise is None:
        return
    for file in _files(folders):
        with file.open("rb") as opened:
            advise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _files(folders: Sequence[str]) -> Iterator[Path]:
    for folder in folders:
        for parent, _, names in os.walk(folder):
            yield from filter(_readable, (Path(parent, name) for name in names))


def _readable(file: Path) -> bool:
    return file.is_file() and os.access(file, os.R_OK)


def _environment(inherited: Mapping[str, str], threads: int) -> dict[str, Any]:
    """As inherited, with ``threads`` for the libraries that compute."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**inherited, **dict.fromkeys(names, str(threads))}
