"""A linear classifier of the method's own, for PASS and IL2A."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from protocl.model.answers import LinearAnswer
from protocl.strategies.avalanche.companion_optimizer import companion_optimizer, follow
from protocl.strategies.exemplar_free.growing_parameters import GrowingParameters

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


class LinearClassifier:
    """Trains a linear classifier beside the model, and answers by it.

    Args:
        rows_per_class: outputs a class, of which the first one answers.
        temperature: of the softmax in training.

    Attributes:
        rows: its parameters.
    """

    def __init__(self, rows_per_class: int, temperature: float) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: expected a number > 0")
        self.rows = LinearRows()
        self.rows_per_class = rows_per_class
        self.temperature = temperature
        self._optimizer: optim.Optimizer | None = None

    @property
    def trains(self) -> bool:
        """Whether there is an optimizer."""
        return self._optimizer is not None

    def grow(self, classes: int, feature_dim: int, device: torch.device) -> None:
        """Make room for so many ``classes``, on ``device``."""
        missing = self.rows_per_class * classes - len(self.rows.weight)
        if missing:
            self.rows.append(missing, feature_dim, device)
        self.rows.to(device)

    def train(self, optimizer: optim.Optimizer, *others: nn.Module) -> None:
        """Train, and ``others`` too, by an optimizer like that of the model, until :meth:`rest`."""
        modules = (self.rows, *others)
        parameters = [parameter for module in modules for parameter in module.parameters()]
        self._optimizer = companion_optimizer(optimizer, parameters)

    def step(self, optimizer: optim.Optimizer) -> None:
        """One step at the present rate of the model's ``optimizer``."""
        if self._optimizer is not None:
            follow(self._optimizer, optimizer)
            self._optimizer.step()
            self._optimizer.zero_grad()

    def rest(self) -> None:
        """Forget the optimizer."""
        self._optimizer = None

    def logits(self, features: Tensor, rows: LinearRows | None = None) -> Tensor:
        """Outputs ``(N, M)`` of features ``(N, D)``, in the precision of the ``rows``."""
        rows = self.rows if rows is None else rows
        with torch.autocast(features.device.type, enabled=False):
            outputs: Tensor = rows(features.to(rows.weight.dtype))
            return outputs

    def loss_of_logits(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Cross-entropy at the temperature, of samples whose row is not :data:`NOT_COUNTED`."""
        return functional.cross_entropy(logits / self.temperature, rows, ignore_index=NOT_COUNTED)

    def cross_entropy(self, features: Tensor, rows: Tensor) -> Tensor:
        """Cross-entropy at the temperature of features ``(N, D)`` with output rows ``(N,)``."""
        return self.loss_of_logits(self.logits(features), rows)

    def kept(self, classes: Tensor) -> LinearAnswer:
        """What a model on disk keeps of it, for ``classes`` ``(R,)`` in the order of their rows."""
        first = slice(None, None, self.rows_per_class)
        return LinearAnswer(temperature=self.temperature).hold(
            classes=classes, weight=self.rows.weight[first], bias=self.rows.bias[first]
        )

    def answer(self, features: Tensor) -> Tensor:
        """Logits ``(N, R)`` of features ``(N, D)``, one column for each class row."""
        return self.logits(features)[:, :: self.rows_per_class] / self.temperature


def drawn_prototypes(prototypes: Tensor, old_rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Prototypes ``(count, D)`` of old classes, evenly drawn, and class rows ``(count,)``.

    Args:
        prototypes: ``(R, D)`` of all classes.
        old_rows: ``(O,)``.
        count: how many to draw.
    """
    rows = old_rows[torch.randint(len(old_rows), (count,), device=prototypes.device)]
    return prototypes[rows], rows
