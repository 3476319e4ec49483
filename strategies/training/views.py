"""Several views of each sample, drawn on the device or made by the data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from protocl.data.augmentation.image_augmentation import crop_and_flip, full_augmentation

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


class OnColourImages:
    """An augmentation for colour images alone; all other inputs stay as they are.

    Shifts, flips and jitter, which are made for photographs, take more from small grey images
    (clothes, letters) than they teach.

    Args:
        augmentation: from images ``(B, 3, H, W)`` to such images.
    """

    def __init__(self, augmentation: Callable[[Tensor], Tensor]) -> None:
        self.augmentation = augmentation

    def __call__(self, x: Tensor) -> Tensor:
        return self.augmentation(x) if x.ndim == 4 and x.shape[1] == 3 else x


def named_views(
    name: Literal["auto", "augmented", "crop_flip", "dataset", "copies"] | str, count: int = 2
) -> Views:
    """The views that a configuration names.

    Raises:
        ValueError: no such name.
    """
    if name == "auto":
        return AugmentedViews(OnColourImages(full_augmentation()), count)
    if name == "augmented":
        return AugmentedViews(full_augmentation(), count)
    if name == "crop_flip":
        return AugmentedViews(crop_and_flip(), count)
    if name == "copies":
        return AugmentedViews(None, count)
    if name == "dataset":
        return DatasetViews()
    raise ValueError(f"views={name}: expected auto, augmented, crop_flip, copies or dataset")
