"""Many classes: update, merge, fit and predict beside what the arithmetic costs at the least.

The least is what the same machine takes in the same run to move as many bytes (a plain copy) or to
do as many multiply-adds (a plain matrix product).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from protocl.bench.comparison import Point, Size, SpeedComparison, require_equal
from protocl.bench.peak_memory import MIB, PeakMeter
from protocl.bench.timing import interleaved
from protocl.heads import NearestMean
from protocl.memory import PrototypeMemory

TARGET = 1.3
"""Most that a prediction may cost, as a multiple of the bare product and top-k."""

_K = 5
_SAMPLES_A_CLASS = 2
_QUERIES = 1024
_BARE_BLOCKS = ((512, 4096), (1448, 1448), (2048, 1000), (256, 8192))
"""Rows and columns of the bare product: the quickest of these is what ours is compared with."""


def measure(size: Size) -> Iterator[SpeedComparison]:
    """Each number of classes in turn, two samples a class to learn from."""
    for classes in size.many_classes:
        yield from _Case(size, classes).comparisons()


@dataclass(frozen=True)
class _Case:
    """One number of classes."""

    size: Size
    classes: int

    def comparisons(self) -> Iterator[SpeedComparison]:
        generator = torch.Generator().manual_seed(0)
        samples = _SAMPLES_A_CLASS * self.classes
        x = torch.rand(samples, self.size.width, generator=generator)
        y = torch.randperm(samples, generator=generator) % self.classes
        memory = PrototypeMemory(self.size.width).update(x, y)
        total, head = memory.copy(), NearestMean().fit(memory)

        def update() -> PrototypeMemory:
            return PrototypeMemory(self.size.width).update(x, y)

        def merge() -> PrototypeMemory:
            return total.merge(memory)

        def fit() -> NearestMean:
            return NearestMean().fit(memory)

        yield from self._moving("update", update, x.nbytes + memory.nbytes, memory.nbytes)
        yield from self._moving("merge", merge, 3 * memory.nbytes, None)
        yield from self._moving("fit", fit, memory.nbytes + head.nbytes, head.nbytes)
        yield from self._predicting(head, x[:_QUERIES])

    def _moving(
        self, name: str, action: Callable[[], Any], moved: int, left: int | None
    ) -> Iterator[SpeedComparison]:
        """Time beside a copy that moves ``moved`` bytes, memory beside what is ``left`` behind."""
        source = torch.zeros(moved // 2, dtype=torch.uint8)
        target = torch.zeros_like(source)
        ours, copied = interleaved(
            action, lambda: target.copy_(source), repeats=min(3, self.size.repeats)
        )
        yield self._share(name, f"copying {moved / 2 / MIB:.0f} MiB", ours.seconds, copied.seconds)
        yield self._memory(name, action, left)

    def _predicting(self, head: NearestMean, queries: Tensor) -> Iterator[SpeedComparison]:
        means = head._means
        case = f"predict, {len(queries)} of {self.classes} classes x {self.size.width}, top {_K}"
        repeats = min(5, self.size.repeats)
        rivals = [
            interleaved(
                partial(head.topk, queries, _K),
                partial(bare_topk, queries, means, _K, rows, columns),
                repeats=repeats,
            )
            for rows, columns in _BARE_BLOCKS
        ]
        ours, bare = min(rivals, key=lambda pair: pair[1].seconds)
        exact = head(queries[:8]).topk(_K)
        difference = float((ours.result[0][:8] - exact.values).abs().max())
        yield SpeedComparison(
            case=case,
            peer_name="bare product and top-k, its quickest blocks",
            ours=ours.seconds,
            peer=bare.seconds,
            kind="cost",
            target=TARGET,
            threads=torch.get_num_threads(),
            difference=require_equal(case, difference, tolerance=1e-3),
        )
        # Part of the classes at a time, so that the product does not have to leave the cache.
        part = means[: min(self.classes, 1448)]
        room = torch.empty(len(queries), len(part))
        _, product = interleaved(
            lambda: None, lambda: torch.mm(queries, part.T, out=room), repeats=repeats
        )
        least = product.seconds * self.classes / len(part)
        yield self._share("predict", "as many multiply-adds", ours.seconds, least)
        yield self._memory("predict", lambda: head.topk(queries, _K), None)

    def _share(self, name: str, peer: str, ours: float, least: float) -> SpeedComparison:
        return SpeedComparison(
            case=f"{name}, {self.classes} classes x {self.size.width}",
            peer_name=peer,
            ours=ours,
            peer=least,
            kind="share",
            target=None,
            threads=torch.get_num_threads(),
            point=Point(name, self.classes),
        )

    def _memory(self, name: str, action: Callable[[], Any], left: int | None) -> SpeedComparison:
        with PeakMeter() as meter:
            action()
        return SpeedComparison(
            case=f"peak memory, {name}, {self.classes} classes x {self.size.width}",
            peer_name="nothing is left behind" if left is None else "what it leaves behind",
            ours=meter.rise / MIB,
            peer=None if left is None else left / MIB,
            kind="limit" if left is None else "share",
            target=None,
            threads=torch.get_num_threads(),
            unit="MiB",
            point=Point(name, self.classes),
        )


def bare_topk(
    queries: Tensor, points: Tensor, k: int, rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    """Largest products of queries ``(N, W)`` with points ``(C, W)``, block by block, no more.

    Returns:
        products ``(N, k)`` and their places ``(N, k)``.
    """
    found = []
    for part in queries.split(rows):
        best: tuple[Tensor, Tensor] | None = None
        for start in range(0, len(points), columns):
            products = part @ points[start : start + columns].T
            values, places = products.topk(min(k, products.shape[1]))
            places += start
            if best is not None:
                values, places = torch.cat([best[0], values], 1), torch.cat([best[1], places], 1)
                values, order = values.topk(min(k, values.shape[1]))
                places = places.gather(1, order)
            best = values, places
        assert best is not None
        found.append(best)
    values, places = zip(*found, strict=True)
    return torch.cat(values), torch.cat(places)
