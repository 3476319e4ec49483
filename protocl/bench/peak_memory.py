"""Memory that an update needs for a moment, beyond the statistics that it leaves behind."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import torch

from protocl.bench.comparison import Comparison, Size
from protocl.bench.synthetic import features
from protocl.memory import PrototypeMemory

LIMIT_MIB = 64.0
MIB = 2**20
_PERIOD = 0.001
"""Seconds between two readings of the resident set."""

CASES: tuple[dict[str, Any], ...] = (
    {"level": "mean"},
    {"level": "diagonal"},
    {"level": "shared"},
    {"level": "full"},
    {"level": "mean", "exact": True},
    {"level": "shared", "exact": True},
    {"level": "full", "exact": True},
)


def measure(size: Size) -> Iterator[Comparison]:
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
        yield Comparison(
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
    """Samples the resident set of this process inside a ``with`` block.

    Attributes:
        rise: bytes by which the highest reading exceeds the one at the start.
    """

    rise: int = 0

    def __enter__(self) -> Self:
        import psutil

        self._process = psutil.Process()
        self._start = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._read()

    def _sample(self) -> None:
        while not self._stop.wait(_PERIOD):
            self._read()

    def _read(self) -> None:
        self.rise = max(self.rise, self._process.memory_info().rss - self._start)
