"""Per-sample feature maps that are applied before statistics are summed.

A non-linear map does not commute with a sum: ``sum f / |f|`` and ``sum f`` are different
statistics. A memory therefore states the map under which it was summed, stores it in its
file and refuses to merge with a memory under another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from protocl.errors import ConfigError
from protocl.memory.limits.capacity import require_bytes
from protocl.memory.precision import in_full_precision
from protocl.tracing import exporting


class FeatureMap(nn.Module):
    """A function of one sample's features; the base class is the identity.

    Attributes:
        spec: text from which :func:`feature_map` builds the same map again.
    """

    spec = "identity"

    def width(self, feature_dim: int) -> int:
        """Number of outputs for ``feature_dim`` inputs."""
        return feature_dim

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(N, D)`` features to ``(N, W)``."""
        return features

    def lift(self, mapped: Tensor) -> Tensor:
        """Features ``(N, D)`` that the map takes to ``mapped`` ``(N, W)``, or near it."""
        return mapped

    def extra_repr(self) -> str:
        return self.spec


def unit(features: Tensor) -> Tensor:
    """``(N, D)`` divided by their Euclidean norms, however small; a zero vector stays zero."""
    return functional.normalize(features, dim=1, eps=torch.finfo(features.dtype).tiny)


class UnitNorm(FeatureMap):
    """Divide each sample by its Euclidean norm; a zero vector stays zero."""

    spec = "unit"

    def forward(self, features: Tensor) -> Tensor:
        return unit(features)


class Tukey(FeatureMap):
    """Tukey's ladder of powers, ``f -> f^power``, or ``log(f)`` for power 0 (FeCAM, section 4.3).

    Raises:
        ValueError: a feature is negative (or not positive, for power 0).
    """

    def __init__(self, power: float = 0.5) -> None:
        super().__init__()
        self.power = float(power)
        self.spec = f"tukey:{self.power:g}"

    def forward(self, features: Tensor) -> Tensor:
        if exporting():
            known = features >= 0 if self.power > 0 else features > 0
            return self._powers(torch.where(known, features, torch.nan))
        lowest = float(features.min()) if features.numel() else 1.0
        if lowest < 0 or (self.power <= 0 and lowest == 0):
            needed = "non-negative" if self.power > 0 else "positive"
            raise ValueError(
                f"Tukey's transform with power {self.power:g} needs {needed} features, "
                f"got {lowest:g}; use tukey=None, or a backbone whose last layer is a ReLU"
            )
        return self._powers(features)

    def _powers(self, features: Tensor) -> Tensor:
        return features.log() if self.power == 0 else features.pow(self.power)

    def lift(self, mapped: Tensor) -> Tensor:
        return mapped.exp() if self.power == 0 else mapped.clamp(min=0).pow(1 / self.power)


class ReluProjection(FeatureMap):
    """Random features ``relu(f W)`` with a fixed Gaussian ``W`` (RanPAC, section 4.1).

    ``W`` comes from a generator of its own, so it depends on ``seed`` alone. Its entries are
    rounded to multiples of 2^-10, which changes nothing that matters in a random matrix and makes
    the product exact in float64 for fixed-point features.

    Args:
        feature_dim: inputs ``D``.
        dim: outputs ``M``.
        seed: seed of ``W``.
        weight: ``(D, M)`` matrix to use in place of a drawn one.
    """

    weight: Tensor

    def __init__(
        self, feature_dim: int, dim: int, *, seed: int = 0, weight: Tensor | None = None
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"projection={dim}: expected a positive number of random features")
        source = f"seed={seed}"
        if weight is None:
            require_bytes(
                8 * feature_dim * dim,  # twice: what is drawn, and what is hashed
                torch.device("cpu"),
                f"a projection of {feature_dim:,} features to {dim:,} random ones",
                lambda: {"projection=10000": 80_000 * feature_dim},
            )
            generator = torch.Generator().manual_seed(seed)
            weight = (
                torch.randn(feature_dim, dim, generator=generator).mul_(1024).round_().div_(1024)
            )
        elif tuple(weight.shape) != (feature_dim, dim):
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}, expected {(feature_dim, dim)}"
            )
        else:
            source = "given"
        self.register_buffer("weight", weight, persistent=False)
        digest = hashlib.sha256(weight.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
        self.spec = f"relu_projection:{feature_dim}:{dim}:{source}:{digest}"

    def width(self, feature_dim: int) -> int:
        if feature_dim != self.weight.shape[0]:
            raise ValueError(
                f"the projection takes {self.weight.shape[0]} features, not {feature_dim}"
            )
        return self.weight.shape[1]

    @in_full_precision
    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(features @ self.weight.to(features.dtype))

    def lift(self, mapped: Tensor) -> Tensor:
        raise NotImplementedError("random features outnumber what they were made from")


def _projection(feature_dim: str, dim: str, source: str, digest: str) -> FeatureMap:
    if source == "given":
        raise ConfigError(
            f"a projection with given weights (hash {digest}) cannot be rebuilt from its "
            "description; pass feature_map=ReluProjection(..., weight=...)"
        )
    built = ReluProjection(int(feature_dim), int(dim), seed=int(source.removeprefix("seed=")))
    if not built.spec.endswith(digest):
        raise ConfigError(
            f"the random projection drawn from {source} has hash {built.spec.rsplit(':', 1)[1]}, "
            f"expected {digest}: this torch draws other numbers; pass the weights explicitly"
        )
    return built


_BUILDERS: dict[str, Callable[..., FeatureMap]] = {
    "identity": FeatureMap,
    "unit": UnitNorm,
    "tukey": lambda power: Tukey(float(power)),
    "relu_projection": _projection,
}


def feature_map(spec: str) -> FeatureMap:
    """The map that ``spec`` describes.

    Raises:
        ConfigError: ``spec`` is unknown or describes weights that cannot be drawn again.
    """
    name, *arguments = spec.split(":")
    try:
        return _BUILDERS[name](*arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"unknown feature map '{spec}'; known kinds: {', '.join(sorted(_BUILDERS))}"
        ) from error
