"""Cosine to the nearest class mean after whitening: direction alone, with scatter taken out."""

from __future__ import annotations

from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.memory.feature_maps import unit
from protocl.open_world.scores.base import CovarianceScore, centre_of


class WhitenedCosine(CovarianceScore):
    """Largest cosine to a class mean, about the mean of all samples and with scatter whitened.

    ``max_c cos(A (x - m), A (mu_c - m))`` with ``A^T A`` the inverse of the shrunk covariance
    within classes. Own combination; a cosine to stored patterns is the score of Zhang et al., "Out
    of distribution detection based on in-distribution data patterns memorization with modern
    Hopfield energy", ICLR 2023, which averages the correctly classified samples of a class where
    this takes all of them, since only then sums suffice.

    Args:
        shrinkage: see :class:`.CovarianceScore`.

    Example:
        >>> features = torch.tensor([[0.0, 0], [0, 1], [4, 0], [4, 1]])
        >>> memory = PrototypeMemory(2, level="shared").update(
        ...     features, torch.tensor([4, 4, 9, 9]))
        >>> score = WhitenedCosine().fit(memory)
        >>> [round(s, 3) for s in score(torch.tensor([[0.0, 0.5], [2.0, 9.5]])).tolist()]
        [1.0, 0.0]
    """

    least_classes = 2
    _half_inverse: Tensor
    _centre: Tensor
    _means: Tensor

    def _fit(self, memory: PrototypeMemory) -> None:
        half, centre = self._whitening(memory), centre_of(memory)
        self._set(_half_inverse=half, _centre=centre, _means=unit((memory.means - centre) @ half.T))

    def _known(self, mapped: Tensor) -> Tensor:
        queries = unit((mapped - self._centre) @ self._half_inverse.T)
        return (queries @ self._means.T).amax(1)
