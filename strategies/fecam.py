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

    Tukey's transform needs features that are not negative; ``head.tukey=null`` for others. A
    covariance takes ``4 D^2 + 4 D`` bytes, twice as many where its class comes in several parts,
    whose rounding is kept then; ``sums.moments=single`` does without.
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="FeCAM",
        paper="Goswami et al., NeurIPS 2023",
        stored_between_experiences="count, mean and covariance of each class",
        keeps_data=False,
        bytes_per_class="4 D^2 + 36 D + 16",
        trains_backbone=False,
    )

    name: str = "fecam"
    head: Part = part(Mahalanobis)
