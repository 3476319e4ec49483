"""A power of each feature, and then unit length."""

from __future__ import annotations

from torch import Tensor

from protocl.memory.feature_maps import Tukey, unit


class TukeyUnit(Tukey):
    """Tukey's power of each feature, and then each sample at length one; zero stays zero.

    Args:
        power: as of :class:`.Tukey`, above 0, so that lengths are those of non-negative vectors.

    Raises:
        ValueError: a feature is negative, or the power is not above 0.

    Example:
        >>> TukeyUnit(0.5)(torch.tensor([[9.0, 16.0], [0.0, 0.0]])).round(decimals=3).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """

    def __init__(self, power: float = 0.5) -> None:
        super().__init__(power)
        if not self.power > 0:
            raise ValueError(f"power={power!r}: expected a number above 0")
        self.spec = self.spec.replace("tukey", "tukey_unit", 1)

    def _powers(self, features: Tensor) -> Tensor:
        return unit(super()._powers(features))

    def in_range(self, mapped: Tensor) -> Tensor:
        return unit(super().in_range(mapped))
