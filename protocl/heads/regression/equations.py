"""Which matrix and which targets a ridge regression solves for, from the sums of a memory."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory

Scatter = Literal["total", "within"]
Balance = Literal["none", "shared", "class"]

_PIECE = 1 << 20
"""Elements of the class moments that are summed at once."""


class Form(NamedTuple):
    """What is regressed; see :class:`protocl.heads.Ridge`."""

    scatter: Scatter = "total"
    bias: bool = False
    balance: Balance = "none"


PLAIN = Form()
"""The features as they are, every sample alike."""


class Equations:
    """``(A + lambda I) W = S`` with ``A`` ``(V, V)``; ``V = W``, or ``W + 1`` with a bias.

    With class weights ``w_c``, class moments ``P_c``, means ``m_c`` and ``n_c`` samples::

        total     A = sum_c w_c P_c                      S = (w_c n_c m_c)_c
        within    A = sum_c w_c (P_c - n_c m_c m_c^T) + (sum_c w_c n_c) g g^T
        balance   w_c = (C / sum_j 1/n_j) / n_c, otherwise 1: all classes weigh alike

    where ``g`` is the weighted mean of all samples. ``balance="shared"`` knows ``sum_c P_c`` alone
    and takes each class for scattered like all, ``w_c (P_c - n_c m_c m_c^T) = w_c n_c B / N`` with
    the scatter ``B`` within all classes. A bias is the weight of one more feature, constantly 1.

    Source: ``within`` is FedCOF's with the exact scatter; ``balance`` is AIR's (Fang et al., AIR:
    analytic imbalance rectifier for continual learning) from level ``full``, and our own from
    level ``shared``: the two are equal where all classes have one covariance.

    Attributes:
        mass: sum of the weights of all samples; their number where all have the weight one.
    """

    def __init__(self, memory: PrototypeMemory, form: Form = PLAIN) -> None:
        self.memory, self.form = memory, form
        self.mass: float = memory.total
        self._weights: Tensor | None = None
        if form.balance != "none":
            counts = memory.counts.to(torch.float64)
            self._weights = len(counts) / counts.reciprocal().sum() / counts
            self.mass = float((self._weights * counts).sum())

    @property
    def width(self) -> int:
        """``V``."""
        return self.memory.width + self.form.bias

    def matrix(self) -> Tensor:
        """``A`` ``(V, V)`` float64, the caller's own."""
        plain = self._without_bias()
        if not self.form.bias:
            return plain
        sums = self._weighted(self.memory.sums).sum(0)
        corner = sums.new_full((1,), self.mass)
        upper = torch.cat([plain, sums[:, None]], 1)
        return torch.cat([upper, torch.cat([sums, corner])[None]])

    @property
    def targets(self) -> Tensor:
        """``S`` ``(V, C)`` float64."""
        sums = self._weighted(self.memory.sums).T
        return torch.cat([sums, self._sizes[None]]) if self.form.bias else sums

    @property
    def squares(self) -> Tensor:
        """``(V,)`` weighted sums of squares of which the diagonal of ``A`` is made."""
        memory = self.memory
        squares = memory.squares if memory.level == "shared" else memory.squares.sum(0)
        squares = squares * (self.mass / memory.total)
        return (
            torch.cat([squares, squares.new_full((1,), self.mass)]) if self.form.bias else squares
        )

    @property
    def _sizes(self) -> Tensor:
        """``(C,)`` weights of whole classes."""
        return self._weighted(self.memory.counts.to(torch.float64)[:, None])[:, 0]

    def _weighted(self, rows: Tensor) -> Tensor:
        return rows if self._weights is None else rows * self._weights[:, None]

    def _without_bias(self) -> Tensor:
        if self.form.scatter == "total" and self._weights is None:
            return _pooled(self.memory).second_moment
        within, means = self._within(), self.memory.means
        placed = means * self._sizes[:, None]
        if self.form.scatter == "total":
            return within + means.T @ placed
        middle = placed.sum(0) / self.mass
        return within + self.mass * torch.outer(middle, middle)

    def _within(self) -> Tensor:
        """Weighted scatter of samples around their class means, ``(W, W)``."""
        memory = self.memory
        if self.form.balance != "class" or self._weights is None:
            return _pooled(memory).scatter() * (self.mass / memory.total)
        within = self._weights.new_zeros(memory.width, memory.width)
        group = max(1, _PIECE // memory.width**2)
        parts = zip(memory.classes.split(group), self._weights.split(group), strict=True)
        for ids, weights in parts:
            within += (memory.subset(ids).scatter() * weights[:, None, None]).sum(0)
        return within


def _pooled(memory: PrototypeMemory) -> PrototypeMemory:
    return memory if memory.level == "shared" else memory.at_level("shared")
