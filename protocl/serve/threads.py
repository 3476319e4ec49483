"""In which threads a server works: several that read, and one that writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

T = TypeVar("T")


class Threads:
    """Readers that answer side by side, and one writer.

    Args:
        readers: requests that are computed at a time.
        torch_threads: threads of torch for each of them.
    """

    def __init__(self, readers: int, torch_threads: int = 1) -> None:
        # What torch keeps of it is for each thread that asks.
        begin = partial(torch.set_num_threads, torch_threads)
        self._readers = ThreadPoolExecutor(readers, "protocl-reader", begin)
        self._writer = ThreadPoolExecutor(1, "protocl-writer", begin)

    async def read(self, ask: Callable[[], T]) -> T:
        """What ``ask`` returns, from one of the readers."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, ask)

    async def write(self, ask: Callable[[], T]) -> T:
        """What ``ask`` returns, from the writer."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, ask)

    def close(self) -> None:
        """Wait for what is being done."""
        self._readers.shutdown()
        self._writer.shutdown()
