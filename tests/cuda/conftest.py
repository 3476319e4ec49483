"""The device that these tests run on: a CUDA GPU, or the CPU where ``make test-cuda`` says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("PROTOCL_TEST_DEVICE") == "cpu":
        return torch.device("cpu")
    pytest.skip("no CUDA device; `make test-cuda` runs these on the CPU, by the same code path")


@pytest.fixture
def no_waiting(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """A block in which CUDA refuses whatever would have the host wait."""

    @contextmanager
    def block() -> Iterator[None]:
        if device.type != "cuda":
            yield
            return
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return block
