"""Training steps of the methods that train the backbone, beside a plain cross-entropy step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn, optim

from protocl.backbones import Classifier
from protocl.backbones.resnet import SmallImageResNet18
from protocl.bench import Size, SpeedComparison
from protocl.bench.timing import settle
from protocl.data import ArrayData, BenchmarkConfig, build_benchmark
from protocl.strategies import (
    ICaRLPlugin,
    IL2APlugin,
    NAPAVQPlugin,
    PASSPlugin,
    PRDPlugin,
    ProtoCLPlugin,
)
from protocl.strategies.bench.peers import naive

BATCH = 64
OLD, NEW = 10, 10
TARGET = 0.10

METHODS: dict[str, Callable[[], Any]] = {
    "PRD": PRDPlugin,
    "NAPA-VQ": NAPAVQPlugin,
    "PASS": PASSPlugin,
    "IL2A": IL2APlugin,
    "ProtoCL": partial(ProtoCLPlugin, mem_size=BATCH),
    "iCaRL": partial(ICaRLPlugin, mem_size=2 * (OLD + NEW)),
}


class GivenFeatures(nn.Module):
    """Stands in for a backbone at no cost: the first pixels of an image are its features.

    Args:
        width: number of features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(N, width)`` of images ``(N, C, H, W)``."""
        return self.scale * x.flatten(1)[:, : self.width]


class StepTimer:
    """Avalanche plugin that takes the time of each iteration over a whole mini-batch.

    Attributes:
        seconds: of the iterations so far.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0
        self._whole = False

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Start the clock."""
        # Stored samples beside the new ones leave a short last mini-batch.
        self._whole = len(strategy.mb_y) == BATCH
        settle(strategy.device)
        self._start = time.perf_counter()

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Stop it."""
        if self._whole:
            settle(strategy.device)
            self.seconds.append(time.perf_counter() - self._start)


def measure(size: Size) -> Iterator[SpeedComparison]:
    """One step of 64 images in the second of two experiences of ten classes, ResNet-18.

    The first rows tell what a method's extra forward passes (views, the model before the
    experience) cost. The second tell what its losses, updates and augmentation cost beside them:
    the same step with features that cost nothing, as a share of the whole step.
    """
    stream = _stream()
    width = 8 * size.step_width
    step = partial(_step, stream, torch.device(size.device), width)
    plain = step(SmallImageResNet18(3, size.step_width), [])
    for name, build in METHODS.items():
        whole = step(SmallImageResNet18(3, size.step_width), [build()])
        own = step(GivenFeatures(width), [build()])
        yield _comparison(f"{name}, a training step", "a cross-entropy step", whole, plain, None)
        case = f"{name}, its own arithmetic in a step"
        yield _comparison(case, "the whole step", own, whole, TARGET)


def _comparison(
    case: str, peer_name: str, ours: float, peer: float, target: float | None
) -> SpeedComparison:
    return SpeedComparison(
        case=f"{case}, ResNet-18, batch {BATCH}",
        peer_name=peer_name,
        ours=ours,
        peer=peer,
        kind="share",
        target=target,
        threads=torch.get_num_threads(),
    )


def _stream() -> Any:
    """Two experiences: one image of each old class, then two mini-batches of new ones."""
    generator = torch.Generator().manual_seed(0)
    y = torch.cat([torch.arange(OLD), OLD + torch.arange(2 * BATCH) % NEW])
    x = torch.randint(256, (len(y), 3, 32, 32), generator=generator, dtype=torch.uint8)
    names = [str(label) for label in range(OLD + NEW)]
    data = ArrayData(x, y, x, y, names, "synthetic")
    config = BenchmarkConfig(n_experiences=2, shuffle_classes=False)
    return build_benchmark(config, data, seed=0).train_stream


def _step(
    stream: Any, device: torch.device, width: int, backbone: nn.Module, plugins: list[Any]
) -> float:
    """Seconds of the quickest step of the second experience."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        timer = StepTimer()
        model = Classifier(backbone, nn.Linear(width, OLD + NEW)).to(device)
        strategy = naive(model, BATCH, *plugins, timer)
        # So small a rate that no method runs away on images of noise.
        strategy.optimizer = optim.SGD(strategy.model.parameters(), lr=1e-6)
        strategy.train(stream[0], eval_streams=[])
        timer.seconds.clear()
        strategy.train(stream[1], eval_streams=[])
    return min(timer.seconds)
