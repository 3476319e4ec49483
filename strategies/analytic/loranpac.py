"""Least squares on the leading directions of random features of a frozen backbone: LoRanPAC."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from protocl.config import StrategyInfo
from protocl.config.sections import Part, part
from protocl.heads import Ridge
from protocl.strategies.frozen.recipe import SeededRecipeConfig


@dataclass
class LoRanPACConfig(SeededRecipeConfig):
    """Settings of :class:`.LoRanPAC`; ``head`` has those of its head, whose seed is the run's."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="LoRanPAC",
        paper="Peng et al., ICLR 2025",
        stored_between_experiences="eigenpairs and class sums of random features",
        keeps_data=False,
        bytes_per_class="16 M + 16",
        trains_backbone=False,
    )

    name: str = "loranpac"
    head: Part = part(partial(Ridge, projection=2000, rank=500, regularization=0.0), "seed")
