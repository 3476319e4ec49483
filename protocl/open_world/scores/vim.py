"""ViM: energy, less what lies outside the space in which the known samples vary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.open_world.fitted import as_shared
from protocl.open_world.scores.base import Shrinkage
from protocl.open_world.scores.discriminant import DiscriminantScore, energy


@dataclass(frozen=True)
class Residual:
    """The space that known samples hardly reach, and how much it counts.

    Attributes:
        origin: ``(W,)`` point about which directions are taken.
        basis: ``(W, W - dim)`` eigenvectors of the second moment about it, the smallest.
        scale: what a unit of residual counts in units of logits.
    """

    origin: Tensor
    basis: Tensor
    scale: float

    @classmethod
    def of(
        cls, memory: PrototypeMemory, weights: Tensor, biases: Tensor, origin: Tensor, dim: int
    ) -> Self:
        """From sums.

        The authors' scale is ``mean_i max_c l_c(x_i) / mean_i |R^T (x_i - o)|``, which takes
        samples. This one is the mean logit of the own class over the root of the mean squared
        residual, which takes sums.

        Args:
            memory: of level ``shared``.
            weights, biases: ``(C, W)`` and ``(C,)`` of the logits ``x W^T + b``.
            origin: ``(W,)``.
            dim: directions that count as reached, below ``W``.
        """
        n = memory.total
        moment = about(memory, origin)
        values, vectors = torch.linalg.eigh(moment)
        own = (memory.sums * weights).sum() + (memory.counts * biases).sum()
        left = len(values) - dim
        missed = values[:left].clamp(min=0).sum().sqrt()
        scale = float(own / n / missed) if missed > 0 else 0.0
        return cls(origin, vectors[:, :left], scale)

    def norms(self, mapped: Tensor) -> Tensor:
        """``|R^T (x - o)|`` ``(N,)`` of samples ``(N, W)``."""
        return torch.linalg.vector_norm((mapped - self.origin) @ self.basis, dim=1)


def about(memory: PrototypeMemory, origin: Tensor) -> Tensor:
    """Second moment ``(W, W)`` of all samples about a point ``(W,)``, from sums."""
    around = memory.means - origin
    between = around.T @ (around * memory.counts[:, None])
    return (as_shared(memory).scatter() + between) / memory.total


class ViM(DiscriminantScore):
    """Energy of a linear discriminant, less the scaled norm of what lies outside the known space.

    The scale follows from sums, where the authors take samples (:meth:`Residual.of`).

    Args:
        dim: directions of the space of the known, below the width; None for half the width, at
            most 256.
        shrinkage: see :class:`.CovarianceScore`.

    Source: Wang et al., "ViM: out-of-distribution with virtual-logit matching", CVPR 2022,
    section 4; origin at the mean of all samples, since the discriminant is about it.

    Example:
        >>> features = torch.tensor([[0.0, 0], [0, 1], [4, 0], [4, 1]])
        >>> memory = PrototypeMemory(2, level="shared").update(
        ...     features, torch.tensor([4, 4, 9, 9]))
        >>> near, far = ViM(dim=1).fit(memory)(torch.tensor([[0.0, 0.5], [0.0, 9.5]])).tolist()
        >>> near > far
        True
    """

    _origin: Tensor
    _basis: Tensor

    def __init__(self, dim: int | None = None, shrinkage: Shrinkage = 0.3) -> None:
        super().__init__(shrinkage)
        if dim is not None and not (type(dim) is int and dim >= 0):
            raise ValueError(f"dim={dim!r}: expected None or a whole number of 0 or more")
        self.dim = dim

    def lacks(self, memory: PrototypeMemory) -> str:
        """See :class:`.Fitted`."""
        if self.dim is not None and self.dim >= memory.width:
            return f"dim={self.dim} leaves no residual of {memory.width} features; lower dim"
        return super().lacks(memory)

    def _fit(self, memory: PrototypeMemory) -> None:
        super()._fit(memory)
        dim = min(memory.width // 2, 256) if self.dim is None else self.dim
        biases = self._biases - self._weights @ self._centre
        self._residual = Residual.of(memory, self._weights, biases, self._centre, dim)

    def _known(self, mapped: Tensor) -> Tensor:
        return energy(self._logits(mapped)) - self._residual.scale * self._residual.norms(mapped)
