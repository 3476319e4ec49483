"""Whole processes: the time from typing a command to its end, and the memory that it took."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
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
    launcher = [sys.executable, "-I", "-S", str(Path(__file__).with_name("launcher.py"))]
    process = subprocess.Popen(
        [*launcher, str(log), *command], cwd=folder, env=_environment(os.environ, threads),
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        told, _ = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # the command as well
        process.wait()
        raise
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} could not be run ({process.returncode})")
    code, wall, processor, peak = json.loads(told)
    if code:
        said = log.read_text(encoding="utf-8", errors="replace")[-_TAIL:]
        raise RuntimeError(f"{' '.join(command)} ended with {code}: {said}")
    return Finished(wall, processor, peak * (1 if sys.platform == "darwin" else 1024))


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
