"""Least squares over a frozen backbone, from sums: AFL."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from protocl.config import StrategyInfo
from protocl.config.sections import Part, part
from protocl.heads import Ridge
from protocl.strategies.frozen.recipe import SeededRecipeConfig


@dataclass
class AFLConfig(SeededRecipeConfig):
    """Settings of :class:`.AFL`; ``head`` has those of its head, whose seed is the run's."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="AFL",
        paper="He et al., CVPR 2025",
        stored_between_experiences="Gram matrix and class sums of features",
        keeps_data=False,
        bytes_per_class="16 D + 16",
        trains_backbone=False,
    )

    name: str = "afl"
    head: Part = part(partial(Ridge, regularization=1e-6, dtype=torch.float64), "seed")
