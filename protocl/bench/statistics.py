"""Time of a memory update against the bare operation that no update can do without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from protocl.bench.comparison import Size, SpeedComparison, require_equal
from protocl.bench.synthetic import features
from protocl.bench.timing import interleaved
from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level

TARGET = 1.5


@dataclass(frozen=True)
class Floor:
    """The operation at the heart of an update, on operands that lie ready for it.

    Attributes:
        name: what it is, for the table.
        run: performs it; its result is what the memory must hold afterwards.
        stored: the same statistics read from a memory.
    """

    name: str
    run: Callable[[], Tensor]
    stored: Callable[[PrototypeMemory], Tensor]


def measure(size: Size) -> Iterator[SpeedComparison]:
    """Update of each level with all samples in one call.

    Ours checks the batch, converts it to float64, groups it by class and accumulates compensated
    sums; the floor has its operands in the type and order that suit it.
    """
    x, y = features(size)
    for level, floor in _floors(x, y, size).items():
        yield _compare(level, floor, x, y, size)


def _compare(level: Level, floor: Floor, x: Tensor, y: Tensor, size: Size) -> SpeedComparison:
    case = f"update, level {level}, {size.samples} x {size.width}, {size.classes} classes"
    ours, bare = interleaved(
        lambda: PrototypeMemory(size.width, level).update(x, y), floor.run, repeats=size.repeats
    )
    scale = float(bare.result.abs().max())
    difference = float((floor.stored(ours.result) - bare.result).abs().max()) / scale
    return SpeedComparison(
        case=case,
        peer_name=floor.name,
        ours=ours.seconds,
        peer=bare.seconds,
        kind="cost",
        target=TARGET,
        threads=torch.get_num_threads(),
        difference=require_equal(case, difference, tolerance=1e-4),
    )


def _floors(x: Tensor, y: Tensor, size: Size) -> dict[Level, Floor]:
    """The floor of each level, operands prepared outside of the measured time."""
    wide = x.to(torch.float64)
    by_class = wide[y.argsort(stable=True)]
    counts = torch.bincount(y).tolist()

    def class_sums(values: Tensor) -> Tensor:
        return torch.zeros(size.classes, size.width).index_add_(0, y, values)

    def class_moments() -> Tensor:
        return torch.stack([part.T @ part for part in by_class.split(counts)])

    return {
        "mean": Floor("one float32 index_add_", lambda: class_sums(x), lambda m: m.sums),
        "diagonal": Floor(
            "two float32 index_add_",
            lambda: torch.stack([class_sums(x), class_sums(x * x)]),
            lambda m: torch.stack([m.sums, m.second_moment]),
        ),
        "shared": Floor("float64 product", lambda: wide.T @ wide, lambda m: m.second_moment),
        "full": Floor("float64 product a class", class_moments, lambda m: m.second_moment),
    }
