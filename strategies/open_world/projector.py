"""Networks between features and the embeddings that losses compare; dropped after training."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class Projector(nn.Module):
    """Linear layers with a nonlinearity between them, of one hidden width.

    Args:
        inputs: width ``D`` of the features.
        hidden: width of the layers between; None for ``inputs``.
        outputs: width ``P`` of the embeddings.
        layers: number of linear layers, 1 or more.
        gelu: GELU between them instead of ReLU.

    Raises:
        ValueError: a number is not positive.

    Example:
        >>> Projector(8, None, 4)(torch.zeros(3, 8)).shape
        torch.Size([3, 4])
    """

    def __init__(
        self, inputs: int, hidden: int | None, outputs: int, *, layers: int = 2, gelu: bool = False
    ) -> None:
        super().__init__()
        hidden = inputs if hidden is None else hidden
        if min(hidden, outputs, layers) < 1:
            raise ValueError(
                f"a projector of {layers} layers of widths {hidden} and {outputs}: expected at "
                "least 1"
            )
        widths = [inputs, *[hidden] * (layers - 1), outputs]
        parts: list[nn.Module] = []
        for before, after in pairwise(widths):
            parts += [nn.Linear(before, after), nn.GELU() if gelu else nn.ReLU()]
        self.layers = nn.Sequential(*parts[:-1])

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings ``(N, P)`` of features ``(N, D)``, in the precision of the weights."""
        weight = next(self.parameters())
        with torch.autocast(features.device.type, enabled=False):
            embedded: Tensor = self.layers(features.to(weight.dtype))
            return embedded
