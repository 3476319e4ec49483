"""NAPA-VQ's coding vectors, the graph that joins them, and how they are trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn, optim

from protocl.strategies.exemplar_free.growing_parameters import GrowingParameters
from protocl.strategies.exemplar_free.neural_gas import grown


class CodingVectors(GrowingParameters):
    """Coding vectors and the graph that joins them.

    Attributes:
        codes: ``(4 R, D)``; row ``4 r + k`` is class row ``r`` after ``k`` quarter turns.
        edges: ``(4 R, 4 R)`` symmetric strengths in [0, 1] with unit diagonal.
    """

    edges: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.zeros(0, 0))
        self.register_buffer("edges", torch.zeros(0, 0))

    def __len__(self) -> int:
        return len(self.codes)

    def append(self, codes: Tensor) -> None:
        """Add unconnected vectors ``(M, D)``; the others and their edges stay as they are."""
        kept = self.codes.detach()
        kept = kept if len(kept) else codes[:0]
        self.codes = nn.Parameter(torch.cat([kept.to(codes.device), codes]))
        self.edges = grown(self.edges.to(codes.device), len(self.codes))


class CodeOptimizer:
    """Plain SGD on coding vectors, anew in each experience, at a rate that falls to tenths.

    Args:
        first_lr: learning rate in the first experience.
        later_lr: in later ones.
        epochs: after which it falls, counted in each experience.
    """

    def __init__(self, first_lr: float, later_lr: float, epochs: int) -> None:
        if epochs < 1:
            raise ValueError(f"code_lr_epochs={epochs}: expected at least 1")
        self.first_lr, self.later_lr, self.epochs = first_lr, later_lr, epochs
        self._optimizer: optim.Optimizer | None = None
        self._start = first_lr
        self._epoch = 0

    @property
    def trains(self) -> bool:
        """Whether an experience has begun."""
        return self._optimizer is not None

    def begin(self, codes: nn.Parameter, first: bool) -> None:
        """Train ``codes`` until :meth:`end`, in the first experience or in a later one."""
        self._start = self.first_lr if first else self.later_lr
        self._optimizer = optim.SGD([codes], lr=self._start)
        self.enter(self._epoch)

    def enter(self, epoch: int) -> None:
        """Begin an epoch, from 0 in each experience."""
        self._epoch = epoch
        for group in () if self._optimizer is None else self._optimizer.param_groups:
            group["lr"] = self._start * 0.1 ** (epoch // self.epochs)

    def step(self) -> None:
        """One step, after which gradients are zero."""
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad()

    def end(self) -> None:
        """Forget the optimizer."""
        self._optimizer = None
