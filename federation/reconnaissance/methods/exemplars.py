"""A pool of exemplars under one budget."""

from __future__ import annotations

import torch
from torch import Tensor

from protocl.strategies.exemplars.herding import herd


class Exemplars:
    """Samples whose mean stays near that of their class, equally many of each class.

    Source: budget and herding of iCaRL (Rebuffi et al., CVPR 2017). Samples that come later are
    chosen beside the exemplars that are there, as the others are gone.

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
        touched = y.unique().tolist()
        quota = max(1, self.budget // len(self._of.keys() | set(touched)))
        for c in touched:
            mine = x[y == c]
            mine = torch.cat([self._of[c], mine]) if c in self._of else mine
            self._of[c] = mine[herd(mine, quota)]
        for c, mine in self._of.items():
            self._of[c] = mine[:quota]  # in the order of choice
        return x.nbytes + y.nbytes

    def joined_with(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Samples ``(N, D)`` of classes ``(N,)`` followed by all exemplars."""
        parts = [x, *self._of.values()]
        labels = [y, *(y.new_full((len(mine),), c) for c, mine in self._of.items())]
        return torch.cat(parts), torch.cat(labels)

    @property
    def nbytes(self) -> int:
        """Bytes of the pool."""
        return sum(mine.nbytes for mine in self._of.values())
