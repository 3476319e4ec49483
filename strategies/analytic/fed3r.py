"""Ridge regression with a bias and unit weights over a frozen backbone: Fed3R."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from protocl.config import StrategyInfo
from protocl.config.sections import Part, part
from protocl.heads import Ridge
from protocl.strategies.frozen.recipe import SeededRecipeConfig


@dataclass
class Fed3RConfig(SeededRecipeConfig):
    """Settings of :class:`.Fed3R`; ``head`` has those of its head, whose seed is the run's."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="Fed3R",
        paper="Fanì et al., ICML 2024",
        stored_between_experiences="Gram matrix and class sums of features",
        keeps_data=False,
        bytes_per_class="16 D + 16",
        trains_backbone=False,
    )

    name: str = "fed3r"
    head: Part = part(partial(Ridge, regularization=0.01, bias=True, normalize=True), "seed")
