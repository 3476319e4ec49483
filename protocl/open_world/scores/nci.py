"""NCI: how near a sample lies to the weight vector of its class."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from protocl.config.validation import is_number
from protocl.errors import PrecisionWarning
from protocl.memory import PrototypeMemory
from protocl.open_world.scores.base import Shrinkage
from protocl.open_world.scores.discriminant import DiscriminantScore


def collapse(samples: Tensor, weights: Tensor, centre: Tensor, alpha: float) -> Tensor:
    """``w_y . (x - m) / |x - m| + alpha |x|_1`` ``(N,)``; the first term is 0 at the centre.

    Args:
        samples: ``(N, W)``.
        weights: ``(N, W)`` weight vectors of the predicted classes.
        centre: ``(W,)`` mean of all samples.
        alpha: weight of the norm.

    >>> collapse(torch.tensor([[3.0, 4.0]]), torch.eye(2)[:1], torch.zeros(2), 0.0)
    tensor([0.6000])
    """
    around = samples - centre
    norms = torch.linalg.vector_norm(around, dim=1)
    along = (weights * around).sum(1) / norms.masked_fill(norms == 0, 1.0)
    return along + alpha * samples.abs().sum(1)


class NCI(DiscriminantScore):
    """Length of the projection of the class's weight vector on the direction of a sample.

    Args:
        alpha: weight of the norm of a sample, 0 or more. The authors choose it on unknown samples;
            leave it as it is. It has the inverse unit of the features: with an offset, or a scale
            far above 1, the norm outweighs the rest; 0 leaves it out.
        shrinkage: see :class:`.CovarianceScore`.

    Warns:
        PrecisionWarning: at a fit, where the norm outweighs the rest a hundredfold.

    Source: Liu and Qin, "Detecting out-of-distribution through the lens of neural collapse", 2023,
    with the weights of linear discriminant analysis.

    Example:
        >>> features = torch.tensor([[0.0, 0], [0, 1], [4, 0], [4, 1]])
        >>> memory = PrototypeMemory(2, level="shared").update(
        ...     features, torch.tensor([4, 4, 9, 9]))
        >>> score = NCI().fit(memory)(torch.tensor([[0.0, 0.5], [2.0, 9.5]]))
        >>> bool(score[0] > score[1])
        True
    """

    def __init__(self, alpha: float = 1e-4, shrinkage: Shrinkage = 0.3) -> None:
        super().__init__(shrinkage)
        if not (is_number(alpha) and 0 <= alpha < float("inf")):
            raise ValueError(f"alpha={alpha!r}: expected a number of 0 or more")
        self.alpha = alpha

    def _fit(self, memory: PrototypeMemory) -> None:
        super()._fit(memory)
        norm = self.alpha * memory.means.abs().sum(1).median()
        along = torch.linalg.vector_norm(self._weights, dim=1).median()
        if norm > _OUTWEIGHED * along:
            warnings.warn(
                f"nci: {self.alpha:g} times the norm of a class mean is {norm:.2g}, and what it is "
                f"added to at most {along:.2g}: the score says how long a sample is, not how well "
                "known; scale the features to a standard deviation near 1, or take alpha=0",
                PrecisionWarning,
                stacklevel=4,
            )

    def _known(self, mapped: Tensor) -> Tensor:
        best = self._weights[self._logits(mapped).argmax(1)]
        return collapse(mapped, best, self._centre, self.alpha)


_OUTWEIGHED = 100
"""How many times the norm may be what it is added to, before the score is one of length alone."""
