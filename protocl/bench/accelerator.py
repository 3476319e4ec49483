"""What a device does beside what it could: updates and forward passes against its own limits.

The limits are measured on the same device in the same run: bytes a second of a plain copy, and
multiply-adds a second of a large matrix product. ``protocl bench accelerator --device cuda``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from protocl.backbones.base import Backbone, Precision
from protocl.backbones.build import BackboneConfig, build_backbone
from protocl.bench.comparison import Size, SpeedComparison
from protocl.bench.timing import settle
from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level
from protocl.memory.pending import PendingUpdates

_LEVELS: tuple[Level, ...] = ("mean", "diagonal", "shared")
_SIDE = 32


def measure(size: Size) -> Iterator[SpeedComparison]:
    """Updates beside bytes and products, a backbone beside its products, on ``size.device``."""
    device = torch.device(size.device)
    limits = _Limits(device, size)
    yield from _updates(size, device, limits)
    yield from _forward(size, device, limits)


class _Limits:
    """Seconds a byte moved, and a multiply-add done, by type; the best of several rounds."""

    def __init__(self, device: torch.device, size: Size) -> None:
        large = size.samples >= 10_000
        side = 4096 if large and device.type != "cpu" else 512
        source = torch.zeros((1 << 28) if large else (1 << 20), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        copied = best(lambda: target.copy_(source), device, size.repeats)
        self.byte = copied / (2 * source.nbytes)
        self.product: dict[torch.dtype, float] = {}
        for kind in (torch.float32, torch.bfloat16, torch.float64):
            a = torch.ones(side, side, dtype=kind, device=device)
            out = torch.empty_like(a)
            with _as_convolutions(device):
                seconds = best(partial(torch.mm, a, a, out=out), device, size.repeats)
            self.product[kind] = seconds / side**3


@contextmanager
def _as_convolutions(device: torch.device) -> Iterator[None]:
    """Let products of float32 on a GPU be in TF32, as those of convolutions are by default.

    In full precision they would be several times slower than what they are to be a limit of.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _updates(size: Size, device: torch.device, limits: _Limits) -> Iterator[SpeedComparison]:
    n, width = size.samples, size.width
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, width, generator=generator).to(device)
    y = torch.randint(size.classes, (n,), generator=generator).to(device)
    for level in _LEVELS:
        for exact in (False, True):
            memory = PrototypeMemory(width, level, exact=exact).to(device)
            pending = PendingUpdates(memory, range(size.classes))
            seconds = best(partial(pending.update, x, y), device, size.repeats)
            case = f"waiting update, level {level}{', fixed point' if exact else ''}, {n} x {width}"
            yield _share(case, "reading the features once", seconds, limits.byte * x.nbytes)
            if level == "shared":
                least = limits.product[torch.float64] * n * width**2
                yield _share(case, "its products in float64", seconds, least)


def _forward(size: Size, device: torch.device, limits: _Limits) -> Iterator[SpeedComparison]:
    batch = min(256, size.images)
    images = torch.zeros(batch, 3, _SIDE, _SIDE, dtype=torch.uint8, device=device)
    for precision in get_args(Precision):
        config = BackboneConfig(name="resnet18", width=size.step_width, precision=precision)
        backbone = build_backbone(config, (3, _SIDE, _SIDE), 0).eval().to(device)
        with torch.no_grad():
            seconds = best(partial(backbone, images), device, size.repeats)
        kind = torch.float32 if precision == "float32" else torch.bfloat16
        least = limits.product[kind] * multiply_adds(backbone, images)
        case = f"forward pass, ResNet-18 of width {size.step_width}, {batch} images, {precision}"
        yield _share(case, "as many multiply-adds in a product", seconds, least)


@torch.no_grad()
def multiply_adds(backbone: Backbone, images: Tensor) -> int:
    """Of one forward pass, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        backbone(images)
    return int(counter.get_total_flops()) // 2


def best(action: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of the quickest of ``repeats`` rounds, after one that is not counted."""
    action()
    seconds = []
    for _ in range(max(3, repeats)):
        settle(device)
        start = time.perf_counter()
        action()
        settle(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _share(case: str, peer: str, ours: float, least: float) -> SpeedComparison:
    return SpeedComparison(
        case=case, peer_name=peer, ours=ours, peer=least, kind="share", target=None,
        threads=torch.get_num_threads(),
    )  # fmt: skip
