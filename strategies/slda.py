"""Linear discriminant analysis over a frozen backbone: SLDA, exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from protocl.config import StrategyInfo
from protocl.config.sections import Part, part
from protocl.heads import LinearDiscriminant
from protocl.strategies.frozen.recipe import RecipeConfig


@dataclass
class SLDAConfig(RecipeConfig):
    """Settings of :class:`.SLDA`; ``head`` has those of its head."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="SLDA",
        paper="Hayes & Kanan, CVPR Workshops 2020",
        stored_between_experiences="count and mean of each class, one covariance",
        keeps_data=False,
        bytes_per_class="16 D + 16",
        trains_backbone=False,
    )

    name: str = "slda"
    head: Part = part(LinearDiscriminant)
