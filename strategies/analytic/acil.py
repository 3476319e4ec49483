"""Ridge regression on random features with a linear layer's start: ACIL."""

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
class ACILConfig(SeededRecipeConfig):
    """Settings of :class:`.ACIL`; ``head`` has those of its head, whose seed is the run's."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="ACIL",
        paper="Zhuang et al., NeurIPS 2022",
        stored_between_experiences="Gram matrix and class sums of random features",
        keeps_data=False,
        bytes_per_class="16 M + 16",
        trains_backbone=False,
    )

    name: str = "acil"
    head: Part = part(
        partial(Ridge, map="relu_linear:dim=2000", regularization=1e-3, dtype=torch.float64), "seed"
    )
