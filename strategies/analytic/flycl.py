"""Ridge regression on the largest of sparse random features: Fly-CL."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from protocl.config import StrategyInfo
from protocl.config.sections import Part, part
from protocl.heads import Ridge
from protocl.strategies.frozen.recipe import SeededRecipeConfig


@dataclass
class FlyCLConfig(SeededRecipeConfig):
    """Settings of :class:`.FlyCL`; ``head`` has those of its head, whose seed is the run's."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="Fly-CL",
        paper="ICLR 2026",
        stored_between_experiences="Gram matrix and class sums of random features",
        keeps_data=False,
        bytes_per_class="16 M + 16",
        trains_backbone=False,
    )

    name: str = "flycl"
    head: Part = part(partial(Ridge, map="top_k:dim=2000:degree=300:keep=0.3"), "seed")
