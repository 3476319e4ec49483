"""Sparse random features of which the largest are kept: Fly-CL."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from protocl.memory.feature_maps import ReluProjection
from protocl.memory.precision import in_full_precision


class TopKProjection(ReluProjection):
    """Of sparse random features ``f W`` the largest are kept, and the others are zero.

    Each column of ``W`` has ``degree`` entries from a standard normal distribution at random
    places, rounded as those of :class:`.ReluProjection`. What is kept may be negative. Features
    equal to the least that is kept are kept too, so that no order decides.

    Args:
        feature_dim: inputs ``D``.
        dim: outputs ``M``; 10,000 in the paper.
        degree: inputs of each output; all of them where there are fewer.
        keep: share of the outputs to keep, above 0 and at most 1.
        seed: seed of ``W``.
        weight: ``(D, M)`` matrix to use in place of a drawn one.

    Source: Fly-CL (ICLR 2026), section 3 and the authors' scripts (degree 100 to 300, keep 0.3 on
    CIFAR).

    Example:
        >>> features = TopKProjection(feature_dim=4, dim=100, degree=2, keep=0.1)(torch.rand(1, 4))
        >>> features.shape, int((features != 0).sum())
        (torch.Size([1, 100]), 10)
    """

    name: ClassVar[str] = "top_k"

    def __init__(
        self,
        feature_dim: int,
        dim: int = 2000,
        degree: int = 300,
        keep: float = 0.3,
        *,
        seed: int = 0,
        weight: Tensor | None = None,
    ) -> None:
        if isinstance(degree, bool) or not isinstance(degree, int) or degree < 1:
            raise ValueError(f"degree={degree!r}: expected a positive number of inputs")
        if not 0 < keep <= 1:
            raise ValueError(f"keep={keep}: expected a share above 0 and at most 1")
        self._settings = degree, float(keep)
        super().__init__(feature_dim, dim, seed=seed, weight=weight)
        self.degree, self.keep = degree, keep
        self.kept = max(1, round(keep * dim))

    def _draw(self, feature_dim: int, dim: int, generator: torch.Generator) -> Tensor:
        dense = super()._draw(feature_dim, dim, generator)
        if self._settings[0] >= feature_dim:
            return dense
        places = torch.rand(feature_dim, dim, generator=generator).argsort(dim=0, stable=True)
        chosen = torch.zeros(feature_dim, dim, dtype=torch.bool)
        return torch.where(chosen.scatter_(0, places[: self._settings[0]], True), dense, 0.0)

    def _words(self) -> tuple[str, ...]:
        return tuple(map(repr, self._settings))

    @in_full_precision
    def forward(self, features: Tensor) -> Tensor:
        projected = features @ self.weight.to(features.dtype)
        least = projected.topk(self.kept, dim=1, sorted=True).values[:, -1:]
        return torch.where(projected >= least, projected, 0.0)
