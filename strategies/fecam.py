"""Mahalanobis distance with one covariance for each class, over a frozen backbone: FeCAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from protocl.config import StrategyInfo
from protocl.config.sections import Part, part
from protocl.heads import Mahalanobis
from protocl.strategies.frozen.recipe import RecipeConfig


@dataclass
class FeCAMConfig(RecipeConfig):
    """Settings of :class:`.FeCAM`; ``head`` has those of its head.

    Tukey's transform needs features that are not negative; ``head.tukey=null`` for others.
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="FeCAM",
        paper="Goswami et al., NeurIPS 2023",
        stored_between_experiences="count, mean and covariance of each class",
        keeps_data=False,
        bytes_per_class="16 D^2 + 32 D + 16",
        trains_backbone=False,
    )

    name: str = "fecam"
    head: Part = part(Mahalanobis)
