"""Random changes of training images, drawn on the device that computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from protocl.data.augmentation.input_range import input_range
from protocl.errors import ConfigError

_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


class ImageAugmentation(nn.Module):
    """Crop, flip, colour jitter and greyscale, drawn for each image on its own device.

    Everything is drawn from torch's global generator, so that a seed decides it and a checkpoint
    of the random state continues it.

    Args:
        padding: pixels of zeros around the image before it is cropped back to its size.
        flip: probability of a horizontal flip.
        jitter: brightness, contrast and saturation are each scaled by a factor from
            ``[1 - jitter, 1 + jitter]``.
        jitter_probability: probability that they are.
        grayscale: probability that colours are dropped; grey images stay as they are.

    Source: the released code of PRD; pixels outside of the image are 0 instead of its -1, for
    images here are in [0, 1].
    """

    def __init__(
        self,
        padding: int = 4,
        flip: float = 0.5,
        jitter: float = 0.4,
        jitter_probability: float = 0.8,
        grayscale: float = 0.2,
    ) -> None:
        super().__init__()
        self.padding = padding
        self.flip = flip
        self.jitter = jitter
        self.jitter_probability = jitter_probability
        self.grayscale = grayscale

    def forward(self, images: Tensor) -> Tensor:
        """Augmented ``(B, C, H, W)`` of images; vectors ``(B, D)`` pass unchanged.

        For their colours, images that leave [0, 1] have black and white at their own extremes.
        """
        if images.ndim != 4:
            return images
        if not self.jitter and not self.grayscale:
            return self._crop_and_flip(images)
        limits = input_range(images)
        unit = self._crop_and_flip((images - limits.low) / limits.span)
        return self._recolour(unit) * limits.span + limits.low

    def _crop_and_flip(self, images: Tensor) -> Tensor:
        batch, _, height, width = images.shape
        offsets = torch.randint(2 * self.padding + 1, (2, batch, 1), device=images.device)
        padded = functional.pad(images, [self.padding] * 4)
        rows = offsets[0] + torch.arange(height, device=images.device)
        columns = offsets[1] + torch.arange(width, device=images.device)
        flipped = torch.rand(batch, 1, device=images.device) < self.flip
        columns = torch.where(flipped, columns.flip(1), columns)
        first = torch.arange(batch, device=images.device)[:, None, None]
        picked = padded.permute(0, 2, 3, 1)[first, rows[:, :, None], columns[:, None, :]]
        return picked.permute(0, 3, 1, 2).contiguous()

    def _recolour(self, images: Tensor) -> Tensor:
        brightness, contrast, saturation = self._factors(images)
        images = (images * brightness).clamp(0, 1)
        centre = _grey(images).mean((1, 2, 3), keepdim=True)
        images = torch.lerp(centre.expand_as(images), images, contrast).clamp(0, 1)
        if images.shape[1] != 3:
            return images
        images = torch.lerp(_grey(images).expand_as(images), images, saturation).clamp(0, 1)
        dropped = self._happens(images, self.grayscale)
        return torch.where(dropped, _grey(images), images)

    def _factors(self, images: Tensor) -> Tensor:
        """Factors ``(3, B, 1, 1, 1)``, 1 where nothing is to change."""
        draws = torch.rand(3, len(images), 1, 1, 1, device=images.device, dtype=images.dtype)
        factors = 1 + self.jitter * (2 * draws - 1)
        return torch.where(self._happens(images, self.jitter_probability), factors, 1.0)

    @staticmethod
    def _happens(images: Tensor, probability: float) -> Tensor:
        return torch.rand(len(images), 1, 1, 1, device=images.device) < probability


def _grey(images: Tensor) -> Tensor:
    """``(B, 1, H, W)``."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    # Made on the device, they would have the host wait for it in each step.
    weights = torch.tensor(_LUMA, dtype=images.dtype).to(images.device, non_blocking=True)
    return (images * weights[:, None, None]).sum(1, keepdim=True)


def full_augmentation() -> ImageAugmentation:
    """Crop, flip, colour jitter and greyscale as contrastive methods take them."""
    return ImageAugmentation()


def crop_and_flip() -> ImageAugmentation:
    """The usual augmentation of CIFAR: shifts of up to 4 pixels and horizontal flips."""
    return ImageAugmentation(jitter=0, grayscale=0)


def named_augmentation(name: str) -> ImageAugmentation | None:
    """The augmentation that ``benchmark.augmentation`` names; None for ``"none"``.

    Raises:
        ConfigError: no such name.
    """
    if name == "none":
        return None
    if name == "crop_flip":
        return crop_and_flip()
    if name == "full":
        return full_augmentation()
    raise ConfigError(f"benchmark.augmentation={name}: expected none, crop_flip or full")


class TrainingAugmentation:
    """Avalanche plugin that augments each training mini-batch before any other plugin sees it.

    Args:
        augmentation: from images ``(B, C, H, W)`` to images of the same shape.
    """

    def __init__(self, augmentation: nn.Module) -> None:
        self.augmentation = augmentation

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Replace the inputs of the mini-batch."""
        strategy.mbatch[0] = self.augmentation(strategy.mbatch[0])
