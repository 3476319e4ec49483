"""Memory that an update needs for a moment, beyond the statistics that it leaves behind."""

from __future__ import annotations

import ctypes
import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from protocl.bench.comparison import Size, SpeedComparison
from protocl.bench.synthetic import features
from protocl.memory import PrototypeMemory

LIMIT_MIB = 64.0
MIB = 2**20
_PERIOD = 0.001
"""Seconds between two readings of the resident set."""
_CLEAR = Path("/proc/self/clear_refs")
"""Writing 5 sets the high-water mark of the resident set back to its present size."""

CASES: tuple[dict[str, Any], ...] = (
    {"level": "mean"},
    {"level": "diagonal"},
    {"level": "shared"},
    {"level": "full"},
    {"level": "mean", "exact": True},
    {"level": "shared", "exact": True},
    {"level": "full", "exact": True},
)


def measure(size: Size) -> Iterator[SpeedComparison]:
    """Each level, all samples in one call, each in a fresh process.

    There no earlier case has left memory behind that could be used again unseen.
    """
    threads = torch.get_num_threads()
    # The server imports torch once and is forked for each case; it computes nothing itself.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    for arguments in CASES:
        described = ", ".join(f"{key} {value}" for key, value in arguments.items())
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
            measured = pool.submit(extra_mib, size, arguments, threads).result()
        yield SpeedComparison(
            case=f"peak memory of an update, {described}, {size.samples} x {size.width}",
            peer_name="statistics themselves left out",
            ours=measured,
            peer=None,
            kind="limit",
            target=LIMIT_MIB,
            threads=threads,
            unit="MiB",
        )


def extra_mib(size: Size, arguments: dict[str, Any], threads: int) -> float:
    """Highest resident set during an update less its level before and the growth of the statistics.

    Args:
        size: the batch.
        arguments: keyword arguments of the memory.
        threads: threads of torch.

    Returns:
        MiB, not below zero.
    """
    torch.set_num_threads(threads)
    x, y = features(size)
    # The first product loads code and makes thread pools; they belong to the process.
    PrototypeMemory(size.width, **arguments).update(x[: size.classes], y[: size.classes])
    memory = PrototypeMemory(size.width, **arguments)
    empty = memory.nbytes
    with PeakMeter() as meter:
        memory.update(x, y)
    return max(0.0, (meter.rise - (memory.nbytes - empty)) / MIB)


@dataclass
class PeakMeter:
    """Highest memory of this process inside a ``with`` block.

    On Linux the kernel keeps the mark, so that no peak is too short to be seen, and code that a
    library loads on its first call (file mappings) is not counted. Elsewhere the resident set is
    sampled.

    Attributes:
        rise: bytes by which the peak exceeds the level at the start.
    """

    rise: int = 0

    def __enter__(self) -> Self:
        _give_back()
        self._meter: _KernelMark | _Samples = _KernelMark() if _CLEAR.exists() else _Samples()
        return self

    def __exit__(self, *exception: object) -> None:
        # The level may fall in between, when memory of before is given back.
        self.rise = max(self._meter.stop(), 0)


class _KernelMark:
    """The kernel's high-water mark of the resident set, set back when made."""

    def __init__(self) -> None:
        _CLEAR.write_text("5")
        self._before = self._status()

    def stop(self) -> int:
        after = self._status()
        code = after["RssFile"] - self._before["RssFile"]
        return (after["VmHWM"] - self._before["VmRSS"] - code) * 1024

    @staticmethod
    def _status() -> dict[str, int]:
        """Sizes in KiB by name."""
        lines = Path("/proc/self/status").read_text().splitlines()
        sizes = [line.split() for line in lines if line.endswith(" kB")]
        return {name.rstrip(":"): int(size) for name, size, _ in sizes}


def _give_back() -> None:
    """Return what earlier work has freed to the system, or it would be used again unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)


class _Samples:
    """The resident set, read every millisecond in a thread."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._start = self._peak = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        self._read()
        return int(self._peak - self._start)

    def _sample(self) -> None:
        while not self._done.wait(_PERIOD):
            self._read()

    def _read(self) -> None:
        self._peak = max(self._peak, self._process.memory_info().rss)
