"""Features and images without meaning; only their sizes matter here."""

from __future__ import annotations

import torch
from torch import Tensor

from protocl.bench.comparison import Size


def features(size: Size) -> tuple[Tensor, Tensor]:
    """Uniform features in [0, 1) and shuffled labels.

    Returns:
        ``(samples, width)`` float32 and ``(samples,)`` int64, every class equally frequent.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(size.samples, size.width, generator=generator)
    return x, _labels(size.samples, size.classes, generator)


def images(size: Size) -> tuple[Tensor, Tensor]:
    """Uniform ``(images, 3, 32, 32)`` float32 in [0, 1) and ``(images,)`` int64 labels."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(size.images, 3, 32, 32, generator=generator)
    return x, _labels(size.images, size.classes, generator)


def _labels(count: int, classes: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator) % classes
