"""Samples without labels beside those of a mini-batch."""

from __future__ import annotations

import torch
from torch import Tensor

from protocl.data import Unlabelled
from protocl.strategies.training.views import Views


class Beside:
    """Views of a mini-batch and of unlabelled samples behind it.

    The samples of the experience come in a random order, each once before any comes again. Draws
    are from torch's global generator. Without unlabelled samples these are the views alone.

    Args:
        views: of each sample.
        unlabelled: samples of all experiences; None for none.
        ratio: unlabelled samples for each labelled one, rounded up; at most those there are.

    Attributes:
        drawn: rows of the unlabelled samples that came last, ``(U,)``.
    """

    def __init__(self, views: Views, unlabelled: Unlabelled | None, ratio: float) -> None:
        if not ratio >= 0:
            raise ValueError(f"ratio={ratio}: expected 0 or more unlabelled samples for each other")
        self.views = views
        self.unlabelled = unlabelled
        self.ratio = ratio
        self._rows = self._waiting = self.drawn = torch.zeros(0, dtype=torch.int64)

    def begin(self, t: int) -> None:
        """Take those of experience ``t`` from now on."""
        if self.unlabelled is not None:
            self._rows = self.unlabelled.rows(t)
        self._waiting = self._rows[:0]

    def __call__(self, x: Tensor) -> Tensor:
        """``(V (B + U), ...)`` of a mini-batch ``(B, ...)``."""
        count = min(len(self._rows), -int(-self.ratio * len(x) // 1))
        self.drawn = self._draw(count)
        if self.unlabelled is None or not count:
            return self.views(x)
        more = self.unlabelled.inputs(self.drawn.to(self.unlabelled.x.device))
        if more.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"unlabelled samples have shape {tuple(more.shape[1:])} and those of the "
                f"mini-batch {tuple(x.shape[1:])}: expected the same; views that the data set "
                "makes itself are not made of unlabelled samples"
            )
        return self.views(torch.cat([x, more.to(x)]))

    def _draw(self, count: int) -> Tensor:
        if len(self._waiting) < count:
            fresh = self._rows[torch.randperm(len(self._rows))]
            self._waiting = torch.cat([self._waiting, fresh])
        drawn, self._waiting = self._waiting[:count], self._waiting[count:]
        return drawn
