"""Memories of several processes, added over torch's own collective communication."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from protocl import PrototypeMemory
from protocl.checks import assert_same

SAMPLES, DIM = 90, 4


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(SAMPLES, DIM, generator=generator)
    return features, torch.arange(SAMPLES) // 12


def process(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    features, labels = batch()
    # Each rank sees other classes, so that the buffers have other shapes before the sum.
    mine = slice(rank * SAMPLES // world, (rank + 1) * SAMPLES // world)
    memory = PrototypeMemory(DIM, "full", exact=True).update(features[mine], labels[mine])
    memory.all_reduce().save(f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


def test_all_reduce_gives_every_rank_the_centralised_memory(tmp_path):
    multiprocessing.spawn(process, (2, str(tmp_path)), nprocs=2)
    whole = PrototypeMemory(DIM, "full", exact=True).update(*batch())
    for rank in range(2):
        assert_same(PrototypeMemory.load(tmp_path / f"{rank}.safetensors"), whole, f"rank {rank}")
