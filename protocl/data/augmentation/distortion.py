"""Random affine and elastic distortion of images, drawn on the device that computes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_KNOTS = 4
"""Displacements of an elastic distortion are drawn on a grid of so many points a side."""


class Distortion(nn.Module):
    """Rotation, shear, scaling, translation and a smooth displacement, drawn for each image.

    Everything is drawn from torch's global generator. What moves in from outside is 0.

    Args:
        degrees: rotation by up to so many degrees either way.
        shear: horizontal shear by up to this tangent.
        scale: each side scaled by a factor within ``1 +- scale``.
        shift: translation by up to this share of half the image.
        elastic: standard deviation of the displacement at 4x4 points, between which it is
            interpolated; a share of half the image.
        flip: probability of a horizontal flip.
    """

    def __init__(
        self,
        degrees: float = 12.0,
        shear: float = 0.2,
        scale: float = 0.12,
        shift: float = 0.12,
        elastic: float = 0.0,
        flip: float = 0.0,
    ) -> None:
        super().__init__()
        self.radians = math.radians(degrees)
        self.shear = shear
        self.scale = scale
        self.shift = shift
        self.elastic = elastic
        self.flip = flip

    def forward(self, images: Tensor) -> Tensor:
        """Distorted ``(B, C, H, W)``."""
        affine = self._affine(images)
        grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
        if self.elastic:
            grid = grid + self._displacement(images)
        return functional.grid_sample(images, grid, align_corners=False)

    def _affine(self, images: Tensor) -> Tensor:
        """Maps ``(B, 2, 3)`` from a pixel's place in the output to its place in the input."""
        draws = 2 * torch.rand(6, len(images), device=images.device, dtype=images.dtype) - 1
        angle, shear = draws[0] * self.radians, draws[1] * self.shear
        width, height = 1 + draws[2:4] * self.scale
        flipped = torch.rand(len(images), device=images.device) < self.flip
        width = torch.where(flipped, -width, width)
        across, down = draws[4:6] * self.shift
        rows = [
            torch.stack([width * angle.cos(), shear - angle.sin(), across], 1),
            torch.stack([width * angle.sin(), height * angle.cos(), down], 1),
        ]
        return torch.stack(rows, 1)

    def _displacement(self, images: Tensor) -> Tensor:
        """``(B, H, W, 2)``."""
        size = images.shape[-2:]
        knots = torch.randn(
            len(images), 2, _KNOTS, _KNOTS, device=images.device, dtype=images.dtype
        )
        smooth = functional.interpolate(knots, size, mode="bicubic", align_corners=True)
        return self.elastic * smooth.permute(0, 2, 3, 1)
