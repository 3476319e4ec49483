"""Several feature maps side by side, for heads that need the statistics of each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Self

import torch
from torch import Tensor, nn

from protocl.memory.feature_maps import FeatureMap, feature_map

_BETWEEN = "|"


class Joint(FeatureMap):
    """The features of several maps, one after the other; each map's are a block.

    One memory then holds the statistics of all: it merges, forgets, travels and is saved as any
    other. Of a second moment heads use the blocks on the diagonal; the whole takes ``(sum M)^2``.

    Args:
        maps: of the same features, none of them a joint one.

    Example:
        >>> from protocl.memory.feature_maps import UnitNorm
        >>> both = Joint([UnitNorm(), FeatureMap()])
        >>> both(torch.tensor([[3.0, 4.0]])).round(decimals=3).tolist(), both.width(2)
        ([[0.6000000238418579, 0.800000011920929, 3.0, 4.0]], 4)

    Raises:
        ValueError: there are none, or one is joint.
    """

    def __init__(self, maps: Sequence[FeatureMap]) -> None:
        super().__init__()
        if not maps or any(isinstance(each, Joint) for each in maps):
            raise ValueError(f"maps={list(maps)!r}: expected one or more maps that are not joint")
        self.maps = nn.ModuleList(maps)
        self.spec = "joint:" + _BETWEEN.join(each.spec for each in maps)

    @classmethod
    def of_words(cls, *words: str) -> Self:
        return cls([feature_map(spec) for spec in ":".join(words).split(_BETWEEN)])

    @property
    def members(self) -> list[FeatureMap]:
        """The maps, in the order of their blocks."""
        return [each for each in self.maps if isinstance(each, FeatureMap)]

    def blocks(self, feature_dim: int) -> list[slice]:
        """Where each map's features are among all."""
        ends = accumulate((each.width(feature_dim) for each in self.members), initial=0)
        return [slice(start, stop) for start, stop in pairwise(ends)]

    def width(self, feature_dim: int) -> int:
        return self.blocks(feature_dim)[-1].stop

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([each(features) for each in self.members], 1)
