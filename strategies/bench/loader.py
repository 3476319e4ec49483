"""Training from memory beside a plain PyTorch loop and beside Avalanche's own data layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from protocl.bench import Size, SpeedComparison
from protocl.bench.comparison import require_equal
from protocl.bench.synthetic import features, images
from protocl.bench.timing import interleaved, thread_count
from protocl.strategies import InMemory
from protocl.strategies.avalanche.tensor_rows import tensor_rows
from protocl.strategies.bench.peers import (
    LEARNING_RATE,
    experience,
    largest_weight_difference,
    linear_network,
    small_network,
    trained,
)

TARGET = 0.9
BATCH = 64


@dataclass(frozen=True)
class Workload:
    """What is trained on what: samples ``(N, ...)`` and labels ``(N,)``, in the loader's order."""

    name: str
    build: Callable[[], nn.Module]
    data: Any
    x: Tensor
    y: Tensor


def workload(name: str, build: Callable[[], nn.Module], x: Tensor, y: Tensor) -> Workload:
    """A workload on an experience of its own, which may order the samples anew."""
    data = experience(x, y)
    x, y, *_ = tensor_rows(data.dataset).batch()
    return Workload(f"{name}, {len(x)} samples", build, data, x, y)


def measure(size: Size) -> Iterator[SpeedComparison]:
    """One epoch of a network on images and of a linear layer on features, one thread, CPU seconds.

    The plain loop indexes tensors and calls model, loss and optimizer, nothing else. All three
    ways draw the same order and must end with the same weights.
    """
    network = partial(small_network, size.classes)
    layer = partial(linear_network, size.width, size.classes)
    with thread_count(1):
        yield from _compare(workload("small network, 3x32x32", network, *images(size)), size)
        yield from _compare(workload(f"linear layer, {size.width}", layer, *features(size)), size)


def _compare(task: Workload, size: Size) -> Iterator[SpeedComparison]:
    def in_memory() -> nn.Module:
        return trained(task.build, task.data, BATCH, InMemory())

    peers: dict[str, tuple[Callable[[], nn.Module], float | None]] = {
        "plain PyTorch loop (CPU time)": (partial(plain_loop, task), TARGET),
        "Avalanche's loader (CPU time)": (partial(trained, task.build, task.data, BATCH), None),
    }
    for name, (peer, target) in peers.items():
        ours, theirs = interleaved(in_memory, peer, repeats=size.repeats, clock=time.process_time)
        case = f"one epoch in memory, {task.name}"
        yield SpeedComparison(
            case=case,
            peer_name=name,
            ours=ours.seconds,
            peer=theirs.seconds,
            kind="speedup",
            target=target,
            threads=1,
            difference=require_equal(
                case, largest_weight_difference(ours.result, theirs.result), 0.0
            ),
        )


def plain_loop(task: Workload) -> nn.Module:
    """Stochastic gradient descent as one writes it without a framework."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = task.build()
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        for rows in _order(len(task.x)).split(BATCH):
            optimizer.zero_grad()
            logits = model(task.x[rows])
            nn.functional.cross_entropy(logits, task.y[rows]).backward()
            optimizer.step()
    return model


def _order(samples: int) -> Tensor:
    """The order in which torch's ``DataLoader`` visits samples after the same seed."""
    # The loader draws a seed for worker processes, then its sampler draws one for the order.
    _, seed = torch.empty(2, dtype=torch.int64).random_().tolist()
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
