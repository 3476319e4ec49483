"""Random features of unit vectors through GELU: AnaCP."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from protocl.memory.feature_maps import ReluProjection, unit
from protocl.memory.precision import in_full_precision


def gelu(x: Tensor) -> Tensor:
    """GELU; in a graph in single precision, since runtimes have no other error function."""
    if x.dtype == torch.float64 and torch.compiler.is_compiling():
        return functional.gelu(x.float()).to(x.dtype)
    return functional.gelu(x)


class GeluProjection(ReluProjection):
    """Random features ``gelu(u R)`` of features ``u`` of unit length, with a Gaussian ``R``.

    The arguments are those of :class:`.ReluProjection`.

    Example:
        >>> import torch
        >>> features = GeluProjection(feature_dim=2, dim=100)(torch.tensor([[3.0, 4.0]]))
        >>> features.shape, bool(features.min() < 0), round(float(features.min()), 1)
        (torch.Size([1, 100]), True, -0.2)

    Source: Momeni et al., NeurIPS 2025, "AnaCP: toward upper-bound continual learning via analytic
    contrastive projection", and the authors' code.
    """

    name: ClassVar[str] = "gelu_projection"

    def forward(self, features: Tensor) -> Tensor:
        return self.projected(unit(features))

    @in_full_precision
    def projected(self, units: Tensor) -> Tensor:
        """``gelu(u R)`` ``(N, M)`` of vectors ``(N, D)`` as they are."""
        return gelu(units @ self.weight.to(units.dtype))
