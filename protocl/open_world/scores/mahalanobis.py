"""Mahalanobis distances to the nearest class mean, plain and relative to all samples."""

from __future__ import annotations

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.open_world.fitted import as_shared
from protocl.open_world.scores.base import CovarianceScore, centre_of


def nearest_squares(queries: Tensor, means: Tensor) -> Tensor:
    """Squared Euclidean distance ``(N,)`` of ``(N, W)`` to the nearest of ``(C, W)``."""
    return torch.cdist(queries, means).amin(1).square()


class MahalanobisScore(CovarianceScore):
    """Minus the squared Mahalanobis distance to the nearest class mean.

    One covariance, of samples around their class means, with divisor ``N``, serves all classes.

    Args:
        shrinkage: see :class:`.CovarianceScore`; the released code takes 0.

    Source: Lee et al., "A simple unified framework for detecting out-of-distribution samples and
    adversarial attacks", NeurIPS 2018, eq. 2, on the last features and without perturbation.

    Example:
        >>> features = torch.tensor([[0.0, 0], [0, 1], [4, 0], [4, 1]])
        >>> memory = PrototypeMemory(2, level="shared").update(
        ...     features, torch.tensor([4, 4, 9, 9]))
        >>> score = MahalanobisScore(shrinkage=0.5).fit(memory)
        >>> [round(s, 3) for s in score(torch.tensor([[0.0, 1.0], [2.0, 0.5]])).tolist()]
        [-1.333, -64.0]
    """

    _half_inverse: Tensor
    _means: Tensor

    def _fit(self, memory: PrototypeMemory) -> None:
        half = self._whitening(memory)
        self._set(_half_inverse=half, _means=memory.means @ half.T)

    def _known(self, mapped: Tensor) -> Tensor:
        return -nearest_squares(mapped @ self._half_inverse.T, self._means)


class RelativeMahalanobis(MahalanobisScore):
    """Mahalanobis distance to the mean of all samples, minus that to the nearest class mean.

    What is far from everything known is far from both; the difference asks whether a class
    explains a sample better than being any sample does.

    Args:
        shrinkage: see :class:`.CovarianceScore`; of both covariances.

    Source: Ren et al., "A simple fix to Mahalanobis distance for improving near-OOD detection",
    2021, eq. 3.

    Example:
        >>> features = torch.tensor([[0.0, 0], [0, 1], [4, 0], [4, 1]])
        >>> memory = PrototypeMemory(2, level="shared").update(
        ...     features, torch.tensor([4, 4, 9, 9]))
        >>> score = RelativeMahalanobis(shrinkage=0.0).fit(memory)
        >>> score(torch.tensor([[0.0, 0.5], [2.0, 0.5]])) > 0
        tensor([ True, False])
    """

    least_classes = 2
    _total_half: Tensor
    _centre: Tensor

    def _fit(self, memory: PrototypeMemory) -> None:
        super()._fit(memory)
        centre = centre_of(memory)
        around = memory.means - centre
        between = around.T @ (around * memory.counts[:, None])
        total = (as_shared(memory).scatter() + between) / memory.total
        self._set(_total_half=self._half(total, memory.total), _centre=centre)

    def _known(self, mapped: Tensor) -> Tensor:
        background = ((mapped - self._centre) @ self._total_half.T).square().sum(1)
        return super()._known(mapped) + background
