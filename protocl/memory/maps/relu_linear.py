"""Random features with the start of a linear layer: ACIL, AIR."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from protocl.memory.feature_maps import ReluProjection

_STEPS = 2.0**16


class ReluLinear(ReluProjection):
    """Random features are ``relu(f W)``, and ``W`` starts as a linear layer of PyTorch does.

    Entries of ``W`` are uniform between ``-1 / sqrt(D)`` and ``1 / sqrt(D)``, so that random
    features are of the size of the features; they are rounded to multiples of 2^-16, as those of
    :class:`.ReluProjection` are. There is no bias, as in the authors' code.

    Args:
        feature_dim: inputs ``D``.
        dim: outputs ``M``; 8,192 in the paper.
        seed: seed of ``W``.
        weight: ``(D, M)`` matrix to use in place of a drawn one.

    Source: Zhuang et al. 2022, "ACIL: analytic class-incremental learning with absolute
    memorization and privacy protection", the authors' code.

    Example:
        >>> features = ReluLinear(feature_dim=4, dim=100)(torch.ones(1, 4))
        >>> features.shape, float(features.max()) <= 4 / 4**0.5  # weights lie within 1 / sqrt(D)
        (torch.Size([1, 100]), True)
    """

    name: ClassVar[str] = "relu_linear"

    def __init__(
        self,
        feature_dim: int,
        dim: int = 2000,
        *,
        seed: int = 0,
        weight: Tensor | None = None,
    ) -> None:
        super().__init__(feature_dim, dim, seed=seed, weight=weight)

    def _draw(self, feature_dim: int, dim: int, generator: torch.Generator) -> Tensor:
        bound = 1 / math.sqrt(feature_dim)
        uniform = torch.rand(feature_dim, dim, generator=generator) * (2 * bound) - bound
        return uniform.mul_(_STEPS).round_().div_(_STEPS)
