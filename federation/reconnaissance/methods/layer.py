"""A linear layer that knows which classes it has been taught."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from protocl.federation.methods.local_steps import LocalSteps, descend

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Loss of logits ``(B, C)`` of the known classes, labels ``(B,)`` among them, and row numbers."""


def softmax_loss(logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """Cross-entropy."""
    return functional.cross_entropy(logits, labels)


class Layer:
    """Weights ``(n_classes, D)`` and biases of which only those of known classes count.

    Args:
        n_classes: number of class ids.
        feature_dim: ``D``.
    """

    def __init__(self, n_classes: int, feature_dim: int) -> None:
        self.weights = [torch.zeros(n_classes, feature_dim), torch.zeros(n_classes)]
        self.known = torch.zeros(n_classes, dtype=torch.bool)

    def train(
        self,
        config: LocalSteps,
        x: Tensor,
        y: Tensor,
        generator: torch.Generator,
        objective: Objective = softmax_loss,
    ) -> None:
        """Local epochs of SGD on features ``(N, D)``, over the classes known by then."""
        self.known[y] = True
        ids = self.known.nonzero().flatten()
        active = [weight[ids].requires_grad_() for weight in self.weights]
        labels = torch.searchsorted(ids, y)

        def loss(rows: Tensor) -> Tensor:
            return objective(functional.linear(x[rows], *active), labels[rows], rows)

        descend(config, active, loss, len(y), generator)
        for weight, trained in zip(self.weights, active, strict=True):
            weight[ids] = trained.detach()

    def average(self, layers: Sequence[Layer], counts: Sequence[int]) -> None:
        """Become the weighted mean of ``layers``, each row over those that know its class."""
        shares = torch.tensor(counts, dtype=torch.float32)[:, None]
        shares = shares * torch.stack([layer.known for layer in layers])
        self.known = shares.sum(0) > 0
        shares = shares / shares.sum(0).clamp(min=1)
        for place in range(len(self.weights)):
            rows = torch.stack([layer.weights[place] for layer in layers])
            weighed = rows * shares.reshape(*shares.shape, *[1] * (rows.ndim - 2))
            self.weights[place] = weighed.sum(0)

    def copy_from(self, other: Layer) -> None:
        """Take over another layer's weights and classes."""
        self.weights = [weight.clone() for weight in other.weights]
        self.known = other.known.clone()

    def reset(self) -> None:
        """Zero weights, no classes."""
        for tensor in (*self.weights, self.known):
            tensor.zero_()

    def predict(self, x: Tensor) -> Tensor:
        """Class ids ``(N,)`` among those known."""
        return self.logits(x).argmax(1)

    def logits(self, x: Tensor) -> Tensor:
        """``(N, n_classes)``, minus infinity for classes not known."""
        return functional.linear(x, *self.weights).masked_fill(~self.known, float("-inf"))

    @property
    def nbytes(self) -> int:
        """Bytes of the known classes' rows in float32, with their ids."""
        return int(self.known.sum()) * (4 * (self.weights[0].shape[1] + 1) + 8)
