"""Ridge regression in which every class weighs alike, on random features: AIR."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from protocl.config import StrategyInfo
from protocl.config.sections import Part, part
from protocl.heads import Ridge
from protocl.strategies.frozen.recipe import Recipe, SeededRecipeConfig


class AIR(Recipe):
    """Ridge regression in which every class weighs alike, on random features: AIR.

    For long tails: the samples of a class are weighted by the inverse of their number (Fang et al.,
    AIR: Analytic Imbalance Rectifier for Continual Learning, 2024). The authors keep one Gram
    matrix a class, as ``strategy.head.balance=class`` does. The default ``balance=shared`` takes
    classes for scattered alike and keeps one for all, a C-th of the memory; the two are equal where
    all classes have one covariance.

    Stored between experiences: the Gram matrix ``(M, M)``, the class sums ``(C, M)`` and the seed
    of the random features; no samples. M = 2000 takes 64 MiB, the paper's M = 8192 takes 1 GiB.
    On the command line: ``strategy=air strategy.head.map=relu_linear:dim=8192``.

    Args:
        **settings: those of :class:`~protocl.heads.Ridge`, such as ``balance``, and of
            :class:`.FrozenBackbone` but ``head``.
    """

    make_head = staticmethod(
        partial(
            Ridge,
            map="relu_linear:dim=2000",
            regularization=1e-3,
            balance="shared",
            dtype=torch.float64,
        )
    )


@dataclass
class AIRConfig(SeededRecipeConfig):
    """Settings of :class:`AIR`; ``head`` has those of its head, whose seed is the run's."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="AIR",
        paper="Fang et al., 2024",
        stored_between_experiences="Gram matrix and class sums of random features",
        keeps_data=False,
        bytes_per_class="16 M + 16",
    )
    recipe = AIR

    name: str = "air"
    head: Part = part(AIR.make_head, "seed")
