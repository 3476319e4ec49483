"""A pool of exemplars under one budget."""

from __future__ import annotations

import torch
from torch import Tensor


class Exemplars:
    """The samples nearest to their class mean, equally many of each class.

    Source: the budget over all classes of iCaRL (Rebuffi et al., CVPR 2017); the nearest samples
    in place of its herding.

    Args:
        budget: samples of all classes together.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._of: dict[int, Tensor] = {}

    def add(self, x: Tensor, y: Tensor) -> int:
        """Take samples ``(N, D)`` of classes ``(N,)`` into the pool; bytes of those offered."""
        if not self.budget:
            return 0
        for c in y.unique().tolist():
            mine = x[y == c]
            self._of[c] = torch.cat([self._of[c], mine]) if c in self._of else mine
        quota = max(1, self.budget // len(self._of))
        for c, mine in self._of.items():
            distances = (mine - mine.mean(0)).square().sum(1)
            self._of[c] = mine[distances.argsort()[:quota]]
        return x.nbytes + y.nbytes

    def joined_with(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Samples followed by all exemplars."""
        parts = [x, *self._of.values()]
        labels = [y, *(y.new_full((len(mine),), c) for c, mine in self._of.items())]
        return torch.cat(parts), torch.cat(labels)

    @property
    def nbytes(self) -> int:
        """Bytes of the pool."""
        return sum(mine.nbytes for mine in self._of.values())
