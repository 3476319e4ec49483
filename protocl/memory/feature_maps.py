"""Per-sample feature maps that are applied before statistics are summed.

A non-linear map does not commute with a sum: ``sum f / |f|`` and ``sum f`` are different
statistics. A memory therefore states the map under which it was summed, stores it in its
file and refuses to merge with a memory under another one.

A map of another package is a subclass of :class:`FeatureMap` under the entry-point group
``protocl.maps``. It then goes with every head (``head = LinearDiscriminant(map="NAME")``), and a
file that names it in its ``spec`` loads by itself.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from protocl.errors import ConfigError
from protocl.memory.limits.capacity import require_bytes
from protocl.memory.precision import in_full_precision
from protocl.registry import MAPS, written_setting, written_value
from protocl.tracing import exporting


class FeatureMap(nn.Module):
    """Features stay as they are; subclasses are other functions of one sample's features.

    Every row is mapped by itself, in the precision that it came in, and nothing is drawn at a call.

    Attributes:
        spec: text from which :func:`feature_map` builds the same map again: the registered name,
            then words for :meth:`of_words`, with colons between.

    Example:
        >>> class Power(FeatureMap):
        ...     def __init__(self, exponent: float = 2.0) -> None:
        ...         super().__init__()
        ...         self.exponent, self.spec = exponent, f"acme_power:{exponent!r}"
        ...
        ...     def forward(self, features: Tensor) -> Tensor:
        ...         return features**self.exponent
    """

    spec = "identity"

    @classmethod
    def of_words(cls, *words: str) -> Self:
        """The map of a :attr:`spec`, of the words after its name; here arguments in their order."""
        return cls(*(written_value(word) for word in words))

    def width(self, feature_dim: int) -> int:
        """Number of outputs for ``feature_dim`` inputs."""
        return feature_dim

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(N, D)`` features to ``(N, W)``."""
        return features

    def in_range(self, mapped: Tensor) -> Tensor:
        """Points ``(N, W)`` that the map could give, near points ``mapped`` that it may not.

        A head is asked about such points where samples are drawn from the statistics.
        """
        return mapped

    def extra_repr(self) -> str:
        return self.spec


def unit(features: Tensor) -> Tensor:
    """``(N, D)`` divided by their Euclidean norms, however small; a zero vector stays zero."""
    return functional.normalize(features, dim=1, eps=torch.finfo(features.dtype).tiny)


class UnitNorm(FeatureMap):
    """Divide each sample by its Euclidean norm; a zero vector stays zero.

    Example:
        >>> UnitNorm()(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """

    spec = "unit"

    def forward(self, features: Tensor) -> Tensor:
        return unit(features)

    def in_range(self, mapped: Tensor) -> Tensor:
        return unit(mapped)


class Tukey(FeatureMap):
    """Features are raised to a power, ``f -> f^power``, or ``log(f)`` for 0 (FeCAM, section 4.3).

    Raises:
        ValueError: a feature is negative (or not positive, for power 0).

    Example:
        >>> Tukey(0.5)(torch.tensor([[4.0, 9.0]])).tolist()
        [[2.0, 3.0]]
    """

    def __init__(self, power: float = 0.5) -> None:
        super().__init__()
        self.power = float(power)
        short = f"{self.power:g}"
        self.spec = f"tukey:{short if float(short) == self.power else repr(self.power)}"

    def forward(self, features: Tensor) -> Tensor:
        if exporting():
            known = features >= 0 if self.power > 0 else features > 0
            return self._powers(torch.where(known, features, torch.nan))
        lowest = float(features.min()) if features.numel() else 1.0
        if lowest < 0 or (self.power <= 0 and lowest == 0):
            needed = "non-negative" if self.power > 0 else "positive"
            raise ValueError(
                f"Tukey's transform with power {self.power:g} needs {needed} features, "
                f"got {lowest:g}; use tukey=None (on the command line "
                "strategy.head.tukey=null), or a backbone whose last layer is a ReLU"
            )
        return self._powers(features)

    def _powers(self, features: Tensor) -> Tensor:
        return features.log() if self.power == 0 else features.pow(self.power)

    def in_range(self, mapped: Tensor) -> Tensor:
        return mapped if self.power == 0 else mapped.clamp(min=0)


class ReluProjection(FeatureMap):
    """Random features are ``relu(f W)`` with a fixed Gaussian ``W`` (RanPAC, section 4.1).

    ``W`` comes from a generator of its own, so it depends on ``seed`` alone. Its entries are
    rounded to multiples of 2^-10, which changes nothing that matters in a random matrix and makes
    the product exact in float64 for fixed-point features.

    Args:
        feature_dim: inputs ``D``.
        dim: outputs ``M``.
        seed: seed of ``W``.
        weight: ``(D, M)`` matrix to use in place of a drawn one.

    Example:
        >>> features = ReluProjection(feature_dim=2, dim=100)(torch.tensor([[3.0, 4.0]]))
        >>> features.shape, bool((features >= 0).all()), bool((features == 0).any())
        (torch.Size([1, 100]), True, True)
    """

    name: ClassVar[str] = "relu_projection"
    weight: Tensor

    def __init__(
        self, feature_dim: int, dim: int, *, seed: int = 0, weight: Tensor | None = None
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"projection={dim}: expected a positive number of random features")
        source = f"seed={seed}"
        if weight is None:
            require_room(feature_dim, dim)
            weight = self._draw(feature_dim, dim, torch.Generator().manual_seed(seed))
        elif tuple(weight.shape) != (feature_dim, dim):
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}, expected {(feature_dim, dim)}"
            )
        else:
            source = "given"
        self.register_buffer("weight", weight, persistent=False)
        words = (str(feature_dim), str(dim), *self._words(), source)
        self.spec = ":".join([self.name, *words, digest(weight)])

    def _draw(self, feature_dim: int, dim: int, generator: torch.Generator) -> Tensor:
        """``W`` ``(D, M)``."""
        return torch.randn(feature_dim, dim, generator=generator).mul_(1024).round_().div_(1024)

    def _words(self) -> tuple[str, ...]:
        """Further settings, in the order of the arguments between ``dim`` and ``seed``."""
        return ()

    @classmethod
    def of_words(cls, *words: str) -> Self:
        *settings, source, found = words
        if source == "given":
            raise ConfigError(
                f"a projection with given weights (hash {found}) cannot be rebuilt from its "
                f"description; pass feature_map={cls.__name__}(..., weight=...)"
            )
        seed = int(source.removeprefix("seed="))
        return cls(*(written_value(word) for word in settings), seed=seed)

    def width(self, feature_dim: int) -> int:
        if feature_dim != self.weight.shape[0]:
            raise ValueError(
                f"the projection takes {self.weight.shape[0]} features, not {feature_dim}"
            )
        return self.weight.shape[1]

    @in_full_precision
    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(features @ self.weight.to(features.dtype))


def require_room(feature_dim: int, dim: int) -> None:
    """Refuse random weights ``(feature_dim, dim)`` that do not fit in memory.

    Raises:
        CapacityError: they do not.
    """
    require_bytes(
        8 * feature_dim * dim,  # twice: what is drawn, and what is hashed
        torch.device("cpu"),
        f"a projection of {feature_dim:,} features to {dim:,} random ones",
        lambda: {"projection=10000": 80_000 * feature_dim},
    )


def digest(*arrays: Tensor) -> str:
    """Sixteen hexadecimal digits that tell arrays from others."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(array.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def feature_map(spec: str) -> FeatureMap:
    """The map that ``spec`` describes.

    Raises:
        ConfigError: ``spec`` is unknown or describes weights that cannot be drawn again.
    """
    if spec == FeatureMap.spec:
        return FeatureMap()
    name, *words = spec.split(":")
    kind = _kind(name, "install and register its package, or pass feature_map=")
    try:
        built = kind.of_words(*words)
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"feature map '{spec}' cannot be built: {error}") from error
    if built.spec != spec:
        raise ConfigError(
            f"the feature map built from '{spec}' is '{built.spec}': random numbers or the package "
            "that registers it have changed; pass feature_map= with the map itself"
        )
    return built


def map_for(wish: str, feature_dim: int, **defaults: Any) -> FeatureMap:
    """The map that a setting asks for: ``NAME``, or ``NAME:SETTING=VALUE:...``.

    Args:
        wish: such as ``"unit"`` or ``"top_k:dim=2000:keep=0.1"``: arguments of a registered map.
        feature_dim: ``D``, for maps that have an argument of that name.
        defaults: of arguments, for maps that have them.

    Raises:
        ConfigError: the name, a setting or a value is unknown; it names the nearest.
    """
    name, *words = wish.split(":")
    kind = _kind(name, "register it under protocl.maps")
    known = inspect.signature(kind).parameters
    taken = {key: value for key, value in defaults.items() if key in known}
    if "feature_dim" in known:
        taken["feature_dim"] = feature_dim
    choices = [each for each in known if each not in ("feature_dim", "weight")]
    owner = f"feature map '{name}'"
    try:
        return kind(**taken | dict(written_setting(owner, word, choices) for word in words))
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"map='{wish}': {error}") from error


def _kind(name: str, otherwise: str) -> type[FeatureMap]:
    if name not in MAPS.names():
        near = difflib.get_close_matches(name, MAPS.names(), n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(
            f"unknown feature map '{name}': {hint}choose from {', '.join(MAPS.names())}, "
            f"or {otherwise}"
        )
    kind = MAPS.get(name)
    if not (isinstance(kind, type) and issubclass(kind, FeatureMap)):
        raise ConfigError(
            f"feature map '{name}' is registered as {kind!r}; expected a subclass of "
            "protocl.memory.feature_maps.FeatureMap"
        )
    return kind
