"""Times of two rivals, taken in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")
OtherResult = TypeVar("OtherResult")
Clock = Callable[[], float]


@dataclass(frozen=True)
class Timed(Generic[Result]):
    """The best time of an action, in seconds, and what it returned last."""

    seconds: float
    result: Result


def timed(action: Callable[[], Result], clock: Clock = time.perf_counter) -> Timed[Result]:
    """Run ``action`` once and take the time."""
    start = clock()
    result = action()
    return Timed(clock() - start, result)


def interleaved(
    ours: Callable[[], Result],
    peer: Callable[[], OtherResult],
    *,
    repeats: int,
    clock: Clock = time.perf_counter,
) -> tuple[Timed[Result], Timed[OtherResult]]:
    """Best time of each action, the two taking turns so that a busy machine disturbs both alike.

    Args:
        ours, peer: actions that can be repeated.
        repeats: rounds, >= 1.
        clock: ``time.perf_counter`` for seconds on the wall, ``time.process_time`` for CPU seconds.
    """
    first, second = timed(ours, clock), timed(peer, clock)
    for _ in range(repeats - 1):
        again, peer_again = timed(ours, clock), timed(peer, clock)
        first = Timed(min(first.seconds, again.seconds), again.result)
        second = Timed(min(second.seconds, peer_again.seconds), peer_again.result)
    return first, second


def settle(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Let torch use ``threads`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
