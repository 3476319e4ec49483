"""Scores from the logits of a linear discriminant: energy and largest probability."""

from __future__ import annotations

from torch import Tensor

from protocl.config.validation import is_number
from protocl.memory import PrototypeMemory
from protocl.open_world.scores.base import CovarianceScore, Shrinkage, centre_of


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """``T log sum_c exp(l_c / T)`` ``(N,)`` of logits ``(N, C)``, high for known.

    Source: Liu et al., "Energy-based out-of-distribution detection", NeurIPS 2020, eq. 4, with the
    sign turned.

    >>> import math
    >>> energy(torch.tensor([[0.0, math.log(3)]])).exp()
    tensor([4.])
    """
    return temperature * (logits / temperature).logsumexp(1)


def largest_probability(logits: Tensor) -> Tensor:
    """Largest softmax probability ``(N,)`` of logits ``(N, C)``, high for known.

    Source: Hendrycks and Gimpel, "A baseline for detecting misclassified and out-of-distribution
    examples in neural networks", ICLR 2017.

    >>> largest_probability(torch.tensor([[0.0, 0.0]]))
    tensor([0.5000])
    """
    return logits.softmax(1).amax(1)


class DiscriminantScore(CovarianceScore):
    """A score that reads the logits of linear discriminant analysis.

    Logits are ``w_c . (x - m) + b_c`` with ``w_c = P (mu_c - m)`` and
    ``b_c = -(mu_c - m) . w_c / 2``, about the mean ``m`` of all samples.

    Args:
        shrinkage: see :class:`.CovarianceScore`.
    """

    least_classes = 2
    _centre: Tensor
    _weights: Tensor
    _biases: Tensor

    def _fit(self, memory: PrototypeMemory) -> None:
        half, centre = self._whitening(memory), centre_of(memory)
        around = memory.means - centre
        weights = around @ half.T @ half
        self._set(_centre=centre, _weights=weights, _biases=-(around * weights).sum(1) / 2)

    def _logits(self, mapped: Tensor) -> Tensor:
        return (mapped - self._centre) @ self._weights.T + self._biases


class Energy(DiscriminantScore):
    """Soft maximum of the logits of linear discriminant analysis.

    Args:
        shrinkage: see :class:`.CovarianceScore`.
        temperature: of the soft maximum, above 0.

    Source: :func:`energy`.

    Example:
        >>> features = torch.tensor([[0.0, 0], [0, 1], [4, 0], [4, 1]])
        >>> memory = PrototypeMemory(2, level="shared").update(
        ...     features, torch.tensor([4, 4, 9, 9]))
        >>> score = Energy(shrinkage=0.5).fit(memory)(torch.tensor([[0.0, 0.5], [2.0, 0.5]]))
        >>> bool(score[0] > score[1])
        True
    """

    def __init__(self, shrinkage: Shrinkage = 0.3, temperature: float = 1.0) -> None:
        super().__init__(shrinkage)
        if not (is_number(temperature) and 0 < temperature < float("inf")):
            raise ValueError(f"temperature={temperature!r}: expected a number above 0")
        self.temperature = temperature

    def _known(self, mapped: Tensor) -> Tensor:
        return energy(self._logits(mapped), self.temperature)


class Softmax(DiscriminantScore):
    """Largest probability of linear discriminant analysis: sure of what is far away, too.

    Args:
        shrinkage: see :class:`.CovarianceScore`.

    Source: :func:`largest_probability`.

    Example:
        >>> features = torch.tensor([[0.0, 0], [0, 1], [4, 0], [4, 1]])
        >>> memory = PrototypeMemory(2, level="shared").update(
        ...     features, torch.tensor([4, 4, 9, 9]))
        >>> Softmax().fit(memory)(torch.tensor([[2.0, 0.5]])).tolist()
        [0.5]
    """

    def _known(self, mapped: Tensor) -> Tensor:
        return largest_probability(self._logits(mapped))
