"""SimpleCIL: nearest class mean by cosine over a frozen backbone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from protocl import heads
from protocl.config import StrategyInfo
from protocl.config.sections import Part, part
from protocl.strategies.frozen.recipe import RecipeConfig


@dataclass
class SimpleCILConfig(RecipeConfig):
    """Settings of :class:`.SimpleCIL`."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="SimpleCIL",
        paper="Zhou et al., IJCV 2024",
        stored_between_experiences="count and mean of each class",
        keeps_data=False,
        bytes_per_class="16 D + 16",
        trains_backbone=False,
    )

    name: str = "simplecil"
    head: Part = part(partial(heads.NearestMean, "cosine"))
