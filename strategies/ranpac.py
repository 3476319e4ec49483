"""Ridge regression on random features of a frozen backbone: RanPAC."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from protocl.config import StrategyInfo
from protocl.config.sections import Part, part
from protocl.heads import Ridge
from protocl.strategies.frozen.recipe import SeededRecipeConfig


@dataclass
class RanPACConfig(SeededRecipeConfig):
    """Settings of :class:`.RanPAC`; ``head`` has those of its head, whose seed is the run's."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="RanPAC",
        paper="McDonnell et al., NeurIPS 2023",
        stored_between_experiences="Gram matrix and class sums of random features",
        keeps_data=False,
        bytes_per_class="16 M + 16",
        trains_backbone=False,
    )

    name: str = "ranpac"
    head: Part = part(partial(Ridge, projection=2000), "seed")
