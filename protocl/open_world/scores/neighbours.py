"""Distance to stored samples: the baseline that keeps what a memory does without."""

from __future__ import annotations

from torch import Tensor

from protocl.memory.feature_maps import unit


class NearestSamples:
    """Minus the squared distance to the ``k``-th nearest of stored samples, on unit vectors.

    Not a function of a memory, so it neither merges nor forgets: for comparison.

    Args:
        k: from 1; with fewer stored samples the farthest of them counts.

    Source: Sun et al., "Out-of-distribution detection with deep nearest neighbors", ICML 2022.

    Example:
        >>> stored = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> NearestSamples(k=1).fit(stored)(torch.tensor([[3.0, 0.0], [-1.0, 0.0]])).tolist()
        [-0.0, -2.0]
    """

    def __init__(self, k: int = 50) -> None:
        if type(k) is not int or k < 1:
            raise ValueError(f"k={k!r}: expected a whole number from 1")
        self.k = k

    def fit(self, features: Tensor) -> NearestSamples:
        """Store samples ``(N, D)``.

        Raises:
            ValueError: there is none.
        """
        if not len(features):
            raise ValueError("NearestSamples.fit: there is no sample to compare with")
        self._stored = unit(features.double())
        return self

    def __call__(self, features: Tensor) -> Tensor:
        """Scores ``(N,)`` float64 of ``(N, D)``, high for known."""
        cosines = unit(features.double()) @ self._stored.T
        kth = cosines.topk(min(self.k, len(self._stored)), dim=1).values[:, -1]
        return -(2 - 2 * kth).clamp(min=0)
