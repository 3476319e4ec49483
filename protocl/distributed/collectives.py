"""What the processes of a group tell each other: values, sums, and that one cannot go on.

Thin over ``torch.distributed``. A process that is gone is a :class:`.PeerError` for the others, and
a process that fails where others would wait for it says so first. Tensors may lie where the group's
backend cannot take them: for NCCL they pass through the device in blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from protocl.errors import PeerError

Group = dist.ProcessGroup | None
T = TypeVar("T")

BLOCK_BYTES = 8 << 20
"""What one step of a collective holds besides what is summed; the backend's copies come on top."""


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
        raise PeerError(
            f"another process of the group ended, or cannot be reached any more ({_reason(error)})"
        ) from error


def _reason(error: RuntimeError) -> str:
    """The first sentence of an error, without the place in the backend's sources."""
    line = str(error).splitlines()[0]
    return (line.partition(".cc:")[2].partition("] ")[2] or line).partition(". ")[0]


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


def of_first(make: Callable[[], T], group: Group = None) -> T:
    """What ``make`` gives on the first process, on all; elsewhere it is not called.

    Raises:
        Exception: what it raised, on the first process.
        PeerError: it raised, elsewhere.
    """
    found: list[Any] = [None]
    with together(group):
        if dist.get_rank(group) == 0:
            found = [make()]
    with peers():
        dist.broadcast_object_list(found, group=group, group_src=0)
    value: T = found[0]
    return value


def dealt(makes: Sequence[Callable[[], Tensor]], group: Group = None) -> list[Tensor]:
    """Tensors that take work to make: each is made by one process, and all get all of them.

    The processes take turns, so that neighbours in the list are made by different ones.

    Args:
        makes: the same work in the same order on every process.
        group: the processes.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    mine = {}
    with together(group):
        mine = {i: makes[i]().contiguous() for i in range(rank, len(makes), size)}
    forms: dict[int, Any] = {}
    for said in gathered({i: (made.shape, made.dtype) for i, made in mine.items()}, group):
        forms |= said
    found = []
    for number in range(len(makes)):
        shape, dtype = forms[number]
        tensor = mine[number] if number in mine else torch.empty(shape, dtype=dtype)
        broadcast_(tensor, number % size, group)
        found.append(tensor)
    return found


def share(parts: Sequence[T], group: Group = None) -> Sequence[T]:
    """Successive parts of a list for this process: those of all, in order of ranks, are all."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    return parts[rank * len(parts) // size : (rank + 1) * len(parts) // size]


def require_same(what: Mapping[str, object], group: Group = None) -> None:
    """Refuse, on all processes alike, to go on from different things.

    Args:
        what: by name; text of it is compared and shown.
        group: the processes.

    Raises:
        PeerError: something differs.
    """
    all_ = gathered({name: str(value) for name, value in what.items()}, group)
    for rank, other in enumerate(all_):
        for name in all_[0] | other:
            first, here = (said.get(name, "nothing") for said in (all_[0], other))
            if here != first:
                raise PeerError(
                    f"the processes differ in {name}: {first} on rank 0, {here} on rank {rank}; "
                    "give all of them the same"
                )
