"""Many image files, decoded by several threads, in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Source = TypeVar("Source")
Result = TypeVar("Result")

_FEW = 64
"""Files that one thread has read before others would have begun."""
_AHEAD = 4
"""Files a thread that are read before they are asked for."""


def read_in_order(read: Callable[[Source], Result], files: Sequence[Source]) -> Generator[Result]:
    """What ``read`` makes of each file, as ``map`` gives it.

    So many threads as torch computes with work ahead, by a few files: decoders leave Python's lock
    to others, so that threads gain what processes would, which take seconds to start. The first
    file that cannot be read raises its error where it stands in the order.

    Args:
        read: may be called from several threads at a time.
        files: read one by one where they are few.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(files) < _FEW:
        yield from map(read, files)
        return
    pool = ThreadPoolExecutor(threads, "reading")
    waiting: deque[Future[Result]] = deque()
    try:
        for file in files:
            waiting.append(pool.submit(read, file))
            if len(waiting) > _AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
