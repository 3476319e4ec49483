"""Memories of several processes, added buffer by buffer: bits, refusals, memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from protocl import PrototypeMemory
from protocl.checks import assert_same
from protocl.distributed import collectives
from protocl.errors import FingerprintError, PeerError
from protocl.memory.feature_maps import feature_map
from protocl.memory.processes import reduction

DIM, RANKS = 5, 3
LEVELS = ("mean", "diagonal", "shared", "full")


def part(rank: int, scale: float = 1.0, **settings: Any) -> PrototypeMemory:
    """What a rank has seen: other classes than the others, more of them with its number."""
    generator = torch.Generator().manual_seed(rank)
    features = scale * torch.randn(7 * (rank + 1), DIM, generator=generator, dtype=torch.float64)
    labels = torch.randint(rank, 2 * rank + 3, (len(features),), generator=generator)
    memory = PrototypeMemory(DIM, **settings)
    return memory if rank == settings.get("empty") else memory.update(features, labels)


def kinds() -> list[dict[str, Any]]:
    exact: list[dict[str, Any]] = [{"level": level, "exact": True} for level in LEVELS]
    floating = [{"level": level, "moments": m} for level in LEVELS for m in ("pairs", "single")]
    projected = {"level": "shared", "feature_map": feature_map("unit"), "raw_means": True}
    return [*exact, *floating, projected, {**projected, "exact": True}]


def huge(rank: int) -> PrototypeMemory:
    """Second moments of any two words; those of one process fit 64 bits, their sum may not."""
    memory = part(rank, level="full", exact=True)
    parts = memory.parts()
    generator = torch.Generator().manual_seed(rank)
    size = parts["second"].shape
    low = torch.randint(-(2**63), 2**63 - 1, size, generator=generator)
    high = torch.randint(-(2**60), 2**60, size, generator=generator)
    words = {"second": low} | ({} if rank == 1 else {"second_high": high})
    return PrototypeMemory.from_parts(memory, parts | words)


def carries(rank: int) -> PrototypeMemory:
    """Second moments of one word each whose sum takes two."""
    memory = part(0, level="shared", exact=True)
    memory.second.fill_(2**62 + rank)
    return memory


def near_the_end(rank: int) -> PrototypeMemory:
    """Sums of different classes whose magnitudes add up to more than 64 bits, but no sum does."""
    memory = PrototypeMemory(DIM, exact=True)
    memory.update(torch.ones(1, DIM), torch.tensor([rank]))
    memory.sum.fill_(-(2**63) if rank == 1 else 2**62)
    return memory


def cases() -> list[Callable[[int], PrototypeMemory]]:
    plain = [lambda rank, kind=kind: part(rank, **kind) for kind in kinds()]
    empty = [
        lambda rank: (
            part(rank, level="full", exact=True)
            if rank == 2
            else PrototypeMemory(DIM, "full", exact=True)
        )
    ]
    nothing = [lambda rank: PrototypeMemory(DIM, "shared")]
    return [*plain, *empty, *nothing, huge, carries, near_the_end]


def refused() -> list[tuple[type[Exception], str, Callable[[int], PrototypeMemory]]]:
    def overflow(rank: int) -> PrototypeMemory:
        memory = PrototypeMemory(DIM, exact=True).update(torch.ones(1, DIM), torch.tensor([4]))
        memory.sum.fill_(2**62)
        return memory

    prints = ("a", None, "b")
    return [
        (
            ValueError,
            "level is mean on rank 0, full on rank 2",
            lambda r: part(r, level="full" if r == 2 else "mean"),
        ),
        (ValueError, "exact is False on rank 0, True on rank 1", lambda r: part(r, exact=r == 1)),
        (FingerprintError, "a on rank 0, b on rank 2", lambda r: part(r, fingerprint=prints[r])),
        (OverflowError, "larger step", overflow),
    ]


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=RANKS)
    collectives.BLOCK_BYTES = 2000  # several blocks of the larger sums, the last one not whole
    for number, case in enumerate(cases()):
        memory = case(rank).all_reduce()
        assert_same(memory, sum(case(r) for r in range(RANKS)), f"case {number}")
        memory.save(f"{folder}/{number}-{rank}.safetensors")
    for kind, message, case in refused():
        memory = case(rank)
        with pytest.raises(kind, match=message):
            memory.all_reduce()
        assert_same(memory, case(rank), message)
    found = part(rank, fingerprint="a" if rank == 1 else None).all_reduce()
    assert found.fingerprint == "a"
    assert set(found.class_revisions().values()) == {found.revision}
    pair = dist.new_group([1, 2])
    if rank:  # ranks within a group are not those of all
        assert_same(part(rank).all_reduce(pair), part(1) + part(2), "a group of two")
    beyond_room(rank)
    lost(rank, folder)


def beyond_room(rank: int) -> None:
    """One process cannot hold the classes of all: nobody waits for it."""
    memory = part(rank)
    if rank == 1:
        memory._rows_for = no_room
    with pytest.raises(MemoryError if rank == 1 else PeerError, match="no room"):
        memory.all_reduce()


def no_room(ids: torch.Tensor) -> torch.Tensor:
    raise MemoryError("no room")


def lost(rank: int, folder: str) -> None:
    """The last process ends where the others wait for it."""
    if rank == RANKS - 1:
        os._exit(0)
    with pytest.raises(PeerError) as error:
        part(rank).all_reduce()
    with open(f"{folder}/lost-{rank}.json", "w") as file:
        json.dump(str(error.value), file)


def test_all_get_the_bits_of_one_process_refuse_together_and_wait_for_nobody_who_is_gone(
    tmp_path,
):
    # Forked, as workers of a torch DataLoader are: three imports of torch would take ten seconds.
    multiprocessing.start_processes(process, (str(tmp_path),), nprocs=RANKS, start_method="fork")
    for number in range(len(cases())):
        files = [(tmp_path / f"{number}-{rank}.safetensors").read_bytes() for rank in range(RANKS)]
        assert files[0] == files[1] == files[2], f"case {number}"
    for rank in range(RANKS - 1):
        assert "another process of the group ended" in (tmp_path / f"lost-{rank}.json").read_text()


def test_words_are_joined_in_their_one_form():
    values = [0, 1, -1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 5 * 2**64 - 3, -(2**70)]
    lower = torch.tensor([v & 0xFFFFFFFF for v in values]) + 2 * (1 << 32)
    upper = torch.tensor([(v >> 32) & 0xFFFFFFFF for v in values]) - 2
    high = torch.tensor([v >> 64 for v in values])
    low, top = reduction._joined(lower, upper, high)
    assert [int(a) + 2**64 * int(b) for a, b in zip(low, top, strict=True)] == values
    assert low.tolist() == [(v + 2**63) % 2**64 - 2**63 for v in values]
