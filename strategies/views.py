"""Several views of each sample, drawn on the device or made by the data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from protocl.augmentation import crop_and_flip, full_augmentation

Views = Callable[[Tensor], Tensor]
"""From inputs of a mini-batch of ``B`` samples to ``(V B, ...)``: all first views come first."""


class DatasetViews:
    """Views that the data set's transform stacked: ``(B, V, ...)`` becomes ``(V B, ...)``."""

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim < 3:
            raise ValueError(
                f"inputs have shape {tuple(x.shape)}: expected (B, V, ...) with V views of each "
                "sample; let the data set's transform stack them, or use views on the device"
            )
        return x.transpose(0, 1).flatten(0, 1)


class AugmentedViews:
    """Views drawn by a random augmentation, independently of each other.

    Args:
        augmentation: from ``(B, ...)`` to ``(B, ...)``; None repeats the input.
        count: number ``V`` of views.
    """

    def __init__(
        self, augmentation: Callable[[Tensor], Tensor] | None = None, count: int = 2
    ) -> None:
        if count < 1:
            raise ValueError(f"count={count}: expected at least one view")
        self.augmentation = augmentation
        self.count = count

    def __call__(self, x: Tensor) -> Tensor:
        if self.augmentation is None:
            return x.repeat(self.count, *[1] * (x.ndim - 1))
        return torch.cat([self.augmentation(x) for _ in range(self.count)])


def named_views(
    name: Literal["augmented", "crop_flip", "dataset", "copies"] | str, count: int = 2
) -> Views:
    """The views that a configuration names.

    Raises:
        ValueError: no such name.
    """
    if name == "augmented":
        return AugmentedViews(full_augmentation(), count)
    if name == "crop_flip":
        return AugmentedViews(crop_and_flip(), count)
    if name == "copies":
        return AugmentedViews(None, count)
    if name == "dataset":
        return DatasetViews()
    raise ValueError(f"views={name}: expected augmented, crop_flip, copies or dataset")
