"""Ridge regression on random features with a linear layer's start: ACIL."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from protocl.config import StrategyInfo
from protocl.config.sections import Part, part
from protocl.heads import Ridge
from protocl.strategies.frozen.recipe import Recipe, SeededRecipeConfig


class ACIL(Recipe):
    """Ridge regression on random features with a linear layer's start: ACIL.

    The authors' recursion over experiences gives the weights of ridge regression on all samples
    (Zhuang et al., ACIL: Analytic Class-Incremental Learning with Absolute Memorization and Privacy
    Protection, NeurIPS 2022); here they follow from sums, so that experiences and clients may come
    in any order.

    Stored between experiences: the Gram matrix ``(M, M)``, the class sums ``(C, M)`` and the seed
    of the random features; no samples. M = 2000 takes 64 MiB, the paper's M = 8192 takes 1 GiB.
    On the command line: ``strategy=acil strategy.head.map=relu_linear:dim=8192``.

    Args:
        **settings: those of :class:`~protocl.heads.Ridge`, such as ``regularization``, and of
            :class:`.FrozenBackbone` but ``head``.
    """

    make_head = staticmethod(
        partial(Ridge, map="relu_linear:dim=2000", regularization=1e-3, dtype=torch.float64)
    )


@dataclass
class ACILConfig(SeededRecipeConfig):
    """Settings of :class:`ACIL`; ``head`` has those of its head, whose seed is the run's."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="ACIL",
        paper="Zhuang et al., NeurIPS 2022",
        stored_between_experiences="Gram matrix and class sums of random features",
        keeps_data=False,
        bytes_per_class="16 M + 16",
    )
    recipe = ACIL

    name: str = "acil"
    head: Part = part(ACIL.make_head, "seed")
