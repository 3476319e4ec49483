"""Nearest class mean over a frozen backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from protocl import heads
from protocl.config import StrategyInfo
from protocl.config.sections import Part, part
from protocl.strategies.frozen.recipe import RecipeConfig


@dataclass
class NearestMeanConfig(RecipeConfig):
    """Settings of :class:`.NearestMean`; ``head`` has those of its head."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="Nearest mean",
        paper="Mensink et al., TPAMI 2013; Janson et al., 2022",
        stored_between_experiences="count and mean of each class",
        keeps_data=False,
        bytes_per_class="16 D + 16",
        trains_backbone=False,
    )

    name: str = "nearest_mean"
    head: Part = part(heads.NearestMean)
