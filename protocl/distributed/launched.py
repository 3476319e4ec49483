"""The processes that ``torchrun`` started: who is here, and how they meet and part."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

from protocl.errors import ConfigError

PATIENCE = timedelta(hours=12)
"""How long one process waits for another that is alive; of one that died it hears at once."""

CONTINUE = "the same command with resume=true continues the run"
_ENDED = 128 + signal.SIGTERM


def is_launched() -> bool:
    """Whether ``torchrun`` started this process beside others."""
    started = "TORCHELASTIC_RUN_ID" in os.environ
    return started and int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """Number of this process among all that ``torchrun`` started, on all machines."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other processes; within the block all but the first are quiet.

    On a machine with GPUs each process takes the one of its local rank. Where the block fails the
    group is left as it is: to close it would wait for the others.

    Raises:
        ConfigError: the processes cannot meet.
    """
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the processes of torchrun cannot meet ({error}); see docs/many_devices.md"
        ) from error
    before = signal.signal(signal.SIGTERM, _end)
    if rank() > 0:
        logging.getLogger().addHandler(logging.NullHandler())  # in place of standard error
        warnings.simplefilter("ignore")
    try:
        yield
        dist.destroy_process_group()
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: FrameType | None) -> None:
    """Say why, where the launcher ends the processes that are left."""
    sys.stderr.write(
        f"protocl: rank {rank()}: ended by the launcher, as when another process died; {CONTINUE}\n"
    )
    sys.stderr.flush()
    os._exit(_ENDED)
