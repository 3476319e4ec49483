"""A linear classifier of the method's own, for PASS and IL2A."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from protocl.strategies.avalanche.companion_optimizer import companion_optimizer, follow
from protocl.strategies.exemplar_free.base import ExemplarFreePlugin, GrowingParameters

NOT_COUNTED = -100
"""Output row of samples that a cross-entropy leaves out."""


class LinearRows(GrowingParameters):
    """A linear classifier that grows by rows.

    Attributes:
        weight: ``(M, D)``.
        bias: ``(M,)``.
        radius: scalar, of the noise around prototypes; 0 until it is known.
    """

    radius: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(0, 0))
        self.bias = nn.Parameter(torch.zeros(0))
        self.register_buffer("radius", torch.zeros(()))

    def append(self, rows: int, feature_dim: int, device: torch.device) -> None:
        """Add rows as torch initialises a linear layer; the others stay as they are."""
        bound = 1 / math.sqrt(feature_dim)
        fresh = torch.empty(rows, feature_dim + 1, device=device).uniform_(-bound, bound)
        kept = self.weight.detach().to(device) if len(self.weight) else fresh[:0, 1:]
        self.weight = nn.Parameter(torch.cat([kept, fresh[:, 1:]]))
        self.bias = nn.Parameter(torch.cat([self.bias.detach().to(device), fresh[:, 0]]))

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(N, M)``."""
        return functional.linear(features, self.weight, self.bias)


class LinearExemplarFreePlugin(ExemplarFreePlugin):
    """An :class:`.ExemplarFreePlugin` that answers by a linear classifier of its own.

    Args:
        rows_per_class: ``V`` outputs a class, of which the first one answers.
        temperature: of the softmax in training.
        augmentation_weight: of the cross-entropy of features that stand in for old classes.
        **settings: those of :class:`.ExemplarFreePlugin` but ``parameters``.

    Attributes:
        parameters: the classifier, :class:`LinearRows`.
    """

    parameters: LinearRows

    def __init__(
        self,
        *,
        rows_per_class: int,
        temperature: float,
        augmentation_weight: float,
        **settings: Any,
    ) -> None:
        super().__init__(LinearRows(), **settings)
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: expected a number > 0")
        if augmentation_weight < 0:
            raise ValueError(f"augmentation_weight={augmentation_weight}: expected 0 or more")
        self.rows_per_class = rows_per_class
        self.temperature = temperature
        self.augmentation_weight = augmentation_weight

    def grow(self, feature_dim: int) -> None:
        rows = self.rows_per_class * len(self.rows) - len(self.parameters.weight)
        if rows:
            self.parameters.append(rows, feature_dim, self.rows.ids.device)

    def make_optimizer(self, strategy: Any) -> optim.Optimizer:
        return companion_optimizer(strategy.optimizer, self.trained_parameters())

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters of one experience's optimizer."""
        return list(self.parameters.parameters())

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        if self._optimizer is not None:
            follow(self._optimizer, strategy.optimizer)
        super().before_update(strategy, **kwargs)

    def logits(self, features: Tensor, classifier: LinearRows | None = None) -> Tensor:
        """Outputs ``(N, M)`` of features ``(N, D)``, in the classifier's precision."""
        classifier = self.parameters if classifier is None else classifier
        with torch.autocast(features.device.type, enabled=False):
            outputs: Tensor = classifier(features.to(classifier.weight.dtype))
            return outputs

    def loss_of_logits(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Cross-entropy at the temperature, of samples whose row is not :data:`NOT_COUNTED`."""
        return functional.cross_entropy(logits / self.temperature, rows, ignore_index=NOT_COUNTED)

    def cross_entropy(self, features: Tensor, rows: Tensor) -> Tensor:
        """Cross-entropy at the temperature of features ``(N, D)`` with output rows ``(N,)``."""
        return self.loss_of_logits(self.logits(features), rows)

    def old_samples(self, count: int) -> tuple[Tensor, Tensor]:
        """Prototypes ``(count, D)`` of old classes, evenly drawn, and class rows ``(count,)``."""
        assert self.table is not None
        drawn = torch.randint(len(self.old_rows), (count,), device=self.table.device)
        rows = self.old_rows[drawn]
        return self.table[rows], rows

    def answer(self, features: Tensor) -> Tensor:
        return self.logits(features)[:, :: self.rows_per_class] / self.temperature
