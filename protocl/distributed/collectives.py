"""What the processes of a group tell each other: values, sums, and that one cannot go on.

Thin over ``torch.distributed``. A process that is gone is a :class:`.PeerError` for the others, and
a process that fails where others would wait for it says so first. Tensors may lie where the group's
backend cannot take them: for NCCL they pass through the device in blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from protocl.errors import PeerError

Group = dist.ProcessGroup | None

BLOCK_BYTES = 64 << 20
"""The most that one step of a collective holds besides what is summed."""


@contextmanager
def peers() -> Iterator[None]:
    """Say of a collective operation in the block that fails what it means.

    Raises:
        PeerError: it failed.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, PeerError) or not is_loss(error):
            raise
        reason = str(error).splitlines()[0]
        raise PeerError(
            f"another process of the group ended, or cannot be reached any more ({reason})"
        ) from error


def is_loss(error: BaseException) -> bool:
    """Whether an error says that another process is gone, and not that a call was wrong."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "connection", "nccl", "timed out", "timeout")
    )


def gathered(value: Any, group: Group = None) -> list[Any]:
    """The small ``value`` of every process, in the order of ranks; it must pickle."""
    values: list[Any] = [None] * dist.get_world_size(group)
    with peers():
        dist.all_gather_object(values, value, group)
    return values


@contextmanager
def together(group: Group = None) -> Iterator[None]:
    """A block without collective operations that may fail on one process: then all raise.

    Raises:
        Exception: what the block raised here.
        PeerError: it went well here, but not everywhere.
    """
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    said = None if problem is None else f"{type(problem).__name__}: {problem}"
    for rank, other in enumerate(gathered(said, group)):
        if problem is None and other is not None:
            raise PeerError(f"rank {rank} cannot go on: {other}")
    if problem is not None:
        raise problem


def sum_(tensor: Tensor, group: Group = None) -> None:
    """Replace a contiguous tensor on every process by the sum over all of them."""
    for piece in _pieces(tensor, group):
        carried = _carried(piece, group)
        with peers():
            dist.all_reduce(carried, group=group)
        if carried is not piece:
            piece.copy_(carried)


def gather(tensor: Tensor, group: Group = None) -> list[Tensor]:
    """The tensor of every process, in the order of ranks; all have one shape and type."""
    carried = _carried(tensor.contiguous(), group)
    parts = [torch.empty_like(carried) for _ in range(dist.get_world_size(group))]
    with peers():
        dist.all_gather(parts, carried, group=group)
    return [part.to(tensor.device) for part in parts]


def broadcast_(tensor: Tensor, rank: int, group: Group = None) -> None:
    """Replace a contiguous tensor on every process by that of one rank of the group."""
    source = rank if group is None else dist.get_global_rank(group, rank)
    for piece in _pieces(tensor, group):
        carried = _carried(piece, group)
        with peers():
            dist.broadcast(carried, source, group=group)
        if carried is not piece:
            piece.copy_(carried)


def blocks(numbers: int, bytes_each: int) -> Iterator[slice]:
    """Successive slices of so many numbers that a step over each takes at most a block.

    Args:
        numbers: how many there are.
        bytes_each: what the step holds for one of them.
    """
    size = max(1, BLOCK_BYTES // bytes_each)
    for start in range(0, numbers, size):
        yield slice(start, min(start + size, numbers))


def _pieces(tensor: Tensor, group: Group) -> Iterator[Tensor]:
    """The tensor as it is, or flat blocks of it where each has to be copied to be sent."""
    if _carrier(tensor, group) == tensor.device:
        yield tensor
        return
    flat = tensor.view(-1)
    for place in blocks(len(flat), tensor.element_size()):
        yield flat[place]


def _carried(tensor: Tensor, group: Group) -> Tensor:
    return tensor.to(_carrier(tensor, group))


def _carrier(tensor: Tensor, group: Group) -> torch.device:
    """Where a tensor has to be to be sent: NCCL takes those of the device alone."""
    if tensor.is_cuda or dist.get_backend(group) != "nccl":
        return tensor.device
    return torch.device("cuda", torch.cuda.current_device())
