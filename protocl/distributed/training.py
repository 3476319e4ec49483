"""Training in several processes: each computes its share of every mini-batch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from protocl.distributed.collectives import broadcast_, gather


def data_parallel(module: nn.Module) -> DistributedDataParallel:
    """``module``, whose gradients are averaged over all processes; on its GPU if it is on one."""
    on_gpu = next(module.parameters()).is_cuda
    # A static graph takes parameters that no gradient reaches.
    return DistributedDataParallel(
        module, device_ids=[torch.cuda.current_device()] if on_gpu else None, static_graph=True
    )


def share_of(samples: int) -> slice | None:
    """The samples of a mini-batch that are this process's; None for all of a small batch.

    BatchNorm takes two samples in each process, so a smaller batch goes through all of them whole.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    if samples < 2 * size:
        return None
    return slice(rank * samples // size, (rank + 1) * samples // size)


def same_everywhere(*modules: nn.Module) -> None:
    """Give all processes the parameters and buffers of the first."""
    for module in modules:
        for tensor in module.state_dict().values():
            broadcast_(tensor, 0)


def all_features(features: Tensor, samples: int) -> Tensor:
    """Features ``(samples, D)`` of a whole mini-batch from those of each process's share.

    Gradients reach the own share alone, times the number of processes over which
    :func:`data_parallel` takes their mean.
    """
    whole: Tensor = _Gathered.apply(features, samples)
    return whole


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, samples: int) -> Tensor:
        size = dist.get_world_size()
        ends = [rank * samples // size for rank in range(size + 1)]
        ctx.place = slice(ends[dist.get_rank()], ends[dist.get_rank() + 1])
        ctx.size = size
        sizes = [end - start for start, end in pairwise(ends)]
        padded = features.new_zeros(max(sizes), *features.shape[1:])
        padded[: len(features)] = features
        return torch.cat([part[:n] for part, n in zip(gather(padded), sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.place] * ctx.size, None
