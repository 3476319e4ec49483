"""Random Fourier features, whose products are a Gaussian kernel: KLDA."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from protocl.errors import ConfigError
from protocl.memory.feature_maps import FeatureMap, digest, require_room
from protocl.memory.precision import in_full_precision

_STEPS = 2.0**10


class RandomFourier(FeatureMap):
    """Random features have products that approximate a Gaussian kernel.

    They are ``phi(f) = sqrt(2 / M) cos(sqrt(2 gamma) f O + b)``, and the expectation of
    ``phi(x) . phi(y)`` is ``exp(-gamma |x - y|^2)``. ``O`` ``(D, M)`` has standard normal entries,
    rounded to multiples of 2^-10, and ``b`` ``(M,)`` uniform ones below 2 pi.
    :class:`~protocl.heads.LinearDiscriminant` under this map is KLDA.

    Args:
        feature_dim: inputs ``D``.
        dim: outputs ``M``; 5,000 in the paper.
        gamma: one over a squared distance; 0.1 to 0.25 over the median squared distance of two
            samples did well on CIFAR-100 features.
        seed: seed of ``O`` and ``b``.
        weight: ``O`` and ``b`` below each other, ``(D + 1, M)``, to use in place of drawn ones.

    Source: Rahimi & Recht 2007, "Random features for large-scale kernel machines"; Momeni et al.
    2024, "Continual learning using a kernel-based method over foundation models" (KLDA).

    Example:
        >>> x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
        >>> map = RandomFourier(feature_dim=2, dim=20_000, gamma=0.5)
        >>> round(float((map(x) * map(y)).sum()), 1), round(math.exp(-0.5), 1)
        (0.6, 0.6)
    """

    weight: Tensor

    def __init__(
        self,
        feature_dim: int,
        dim: int = 2000,
        gamma: float = 1e-3,
        *,
        seed: int = 0,
        weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        if dim < 1 or not 0 < gamma < math.inf:
            raise ValueError(f"dim={dim}, gamma={gamma}: expected a positive whole number and one")
        source = f"seed={seed}" if weight is None else "given"
        drawn = _draw(feature_dim, dim, seed) if weight is None else weight
        if tuple(drawn.shape) != (feature_dim + 1, dim):
            raise ValueError(
                f"weight has shape {tuple(drawn.shape)}, expected {(feature_dim + 1, dim)}"
            )
        self.gamma = float(gamma)
        self.register_buffer("weight", drawn, persistent=False)
        words = (feature_dim, dim, repr(self.gamma), source, digest(drawn))
        self.spec = ":".join(["random_fourier", *map(str, words)])

    @classmethod
    def of_words(cls, *words: str) -> Self:
        feature_dim, dim, gamma, source, found = words
        if source == "given":
            raise ConfigError(
                f"random Fourier features with given weights (hash {found}) cannot be rebuilt "
                "from their description; pass feature_map=RandomFourier(..., weight=...)"
            )
        seed = int(source.removeprefix("seed="))
        return cls(int(feature_dim), int(dim), float(gamma), seed=seed)

    def width(self, feature_dim: int) -> int:
        if feature_dim != len(self.weight) - 1:
            raise ValueError(f"the map takes {len(self.weight) - 1} features, not {feature_dim}")
        return self.weight.shape[1]

    @in_full_precision
    def forward(self, features: Tensor) -> Tensor:
        weight = self.weight.to(features.dtype)
        angles = features @ (weight[:-1] * math.sqrt(2 * self.gamma)) + weight[-1]
        return torch.cos(angles) * math.sqrt(2 / weight.shape[1])


def _draw(feature_dim: int, dim: int, seed: int) -> Tensor:
    require_room(feature_dim, dim)
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(feature_dim, dim, generator=generator).mul_(_STEPS).round_().div_(_STEPS)
    return torch.cat([normal, torch.rand(1, dim, generator=generator) * (2 * math.pi)])
