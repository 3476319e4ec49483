"""What answers in the place of a head: scores by trained parameters, for methods that have them."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from protocl.heads.base import Head
from protocl.memory import PrototypeMemory


class Answer(nn.Module):
    """Scores of features by parameters that were trained, not summed.

    A subclass registers under ``protocl.answers``, so that a model on disk can name it. Its
    buffers are all its state, and it is made from its ``settings`` alone.

    Attributes:
        classes: ``(C,)`` int64 class ids of the columns.
        settings: names of its arguments, which are attributes too.
    """

    settings: ClassVar[tuple[str, ...]] = ()
    classes: Tensor

    def hold(self, **tensors: Tensor) -> Self:
        """Keep copies of ``tensors``, ``classes`` among them, as buffers."""
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach().clone())
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """The settings and their values."""
        return {name: getattr(self, name) for name in self.settings}


Answering = tuple[Head, PrototypeMemory] | Answer
"""What answers for a strategy: a head over a memory, or trained parameters."""


class LinearAnswer(Answer):
    """``(W z + b) / temperature``, of features as they are or of unit length.

    Args:
        unit_length: divide features by their norm first.
        temperature: divides the scores.

    Attributes:
        weight: ``(C, D)``.
        bias: ``(C,)``.
    """

    settings = ("unit_length", "temperature")
    weight: Tensor
    bias: Tensor

    def __init__(self, unit_length: bool = False, temperature: float = 1.0) -> None:
        super().__init__()
        self.unit_length = unit_length
        self.temperature = temperature

    @classmethod
    def of(cls, layer: nn.Linear) -> Self:
        """The answer of a model's own classification layer, one output for each class id."""
        rows = len(layer.weight)
        bias = layer.weight.new_zeros(rows) if layer.bias is None else layer.bias
        return cls().hold(classes=torch.arange(rows), weight=layer.weight, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """Scores ``(N, C)`` of features ``(N, D)``, in the precision of the weights."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.weight.dtype)
            features = functional.normalize(features, dim=1) if self.unit_length else features
            scores = functional.linear(features, self.weight, self.bias)
            return scores / self.temperature
