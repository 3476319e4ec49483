"""The forward pass of a stream, as it is or compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from protocl.data.arrays import as_images
from protocl.streaming.settings import Compiled

_MODES: dict[Compiled, str | None] = {"yes": None, "graphs": "reduce-overhead"}


def encoding(
    backbone: nn.Module, device: torch.device, size: int, compiled: Compiled
) -> Callable[[Tensor], Tensor]:
    """What makes features ``(N, D)`` on ``device`` of samples ``(N, ...)`` on the host.

    Args:
        backbone: on ``device``.
        device: where to compute.
        size: most samples at a time; a compiled pass always takes so many, of which the last may
            be zeros.
        compiled: see :class:`.StreamConfig`.
    """

    def plain(x: Tensor) -> Tensor:
        features: Tensor = backbone(as_images(x.to(device, non_blocking=True)))
        return features

    if compiled == "no":
        return plain
    quick: Any = torch.compile(backbone, mode=_MODES[compiled], dynamic=False)

    def padded(x: Tensor) -> Tensor:
        whole = F.pad(x, [0, 0] * (x.ndim - 1) + [0, size - len(x)])
        features: Tensor = quick(as_images(whole.to(device, non_blocking=True)))
        return features[: len(x)].clone()  # a graph writes its next result to the same place

    return padded
