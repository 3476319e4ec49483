"""Between which values the inputs of a model lie."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class InputRange(NamedTuple):
    """The least and the largest value of inputs, scalars on their device.

    Attributes:
        low: 0 for inputs in [0, 1].
        high: 1 for inputs in [0, 1].
    """

    low: Tensor
    high: Tensor

    @property
    def span(self) -> Tensor:
        """``high - low``; 1 for inputs that are all alike."""
        span = self.high - self.low
        return torch.where(span > 0, span, torch.ones_like(span))


def input_range(inputs: Tensor) -> InputRange:
    """[0, 1] for inputs that lie in it; else, as for standardised images, their own extremes.

    >>> low, high = input_range(torch.tensor([-2.0, 0.5, 3.0]))
    >>> low.item(), high.item()
    (-2.0, 3.0)
    """
    low, high = inputs.aminmax()
    inside = (low >= 0) & (high <= 1)
    return InputRange(
        torch.where(inside, torch.zeros_like(low), low),
        torch.where(inside, torch.ones_like(high), high),
    )
