"""Mixtures of two images as images of a class between theirs: label augmentation of IL2A."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST, LARGEST = 0.4, 0.6
"""A share outside of these is replaced by a half, so that no mixture is nearly one image."""


class MixedViews:
    """Each image as it is, then ``mixes`` mixtures of it with other images of its mini-batch.

    Args:
        mixes: mixtures of each image.
        concentration: both parameters of the Beta distribution of the share of the image itself.

    Attributes:
        partners: ``(mixes, B)``, the image that each was last mixed with.

    Source: Zhu et al. 2021 (IL2A), section 3.2.
    """

    def __init__(self, mixes: int, concentration: float) -> None:
        if mixes < 0:
            raise ValueError(f"mixes={mixes}: expected 0 or more")
        if not concentration > 0:
            raise ValueError(f"concentration={concentration}: expected a number > 0")
        self.mixes = mixes
        self.concentration = concentration
        self.forget()

    def forget(self) -> None:
        """Drop the partners of the last mini-batch."""
        self.partners = torch.zeros((self.mixes, 0), dtype=torch.int64)

    def __call__(self, images: Tensor) -> Tensor:
        """``((1 + mixes) B, ...)`` of images ``(B, ...)``."""
        batch, device = len(images), images.device
        self.partners = torch.rand(self.mixes, batch, device=device).argsort(1)
        shares = self._shares(self.mixes * batch, device).to(images.dtype)
        shares = shares.view(-1, *[1] * (images.ndim - 1))
        others = images[self.partners.flatten()]
        mixtures = shares * images.repeat(self.mixes, *[1] * (images.ndim - 1))
        return torch.cat([images, mixtures + (1 - shares) * others])

    def _shares(self, count: int, device: torch.device) -> Tensor:
        parameter = torch.full((count,), self.concentration, device=device)
        shares = torch.distributions.Beta(parameter, parameter, validate_args=False).sample()
        return torch.where((shares < LEAST) | (shares > LARGEST), 0.5, shares)


def mixed_rows(first: Tensor, second: Tensor) -> Tensor:
    """Number of the class between two: ``h (h - 1) / 2 + l`` for the higher and the lower one.

    Args:
        first, second: ``(N,)`` numbers of classes from 0.

    Returns:
        ``(N,)``, from 0 to ``K (K - 1) / 2 - 1`` for ``K`` classes; -1 where both are the same.

    >>> mixed_rows(torch.tensor([1, 0, 2, 2]), torch.tensor([0, 1, 0, 2])).tolist()
    [0, 0, 1, -1]
    """
    high, low = torch.maximum(first, second), torch.minimum(first, second)
    return torch.where(high == low, -1, high * (high - 1) // 2 + low)
