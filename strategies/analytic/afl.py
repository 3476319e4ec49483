"""Least squares over a frozen backbone, from sums: AFL."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from protocl.config import StrategyInfo
from protocl.config.sections import Part, part
from protocl.heads import Ridge
from protocl.strategies.frozen.recipe import Recipe, SeededRecipeConfig


class AFL(Recipe):
    """Least squares over a frozen backbone, from sums: AFL.

    Clients of AFL solve a regularised problem each, and the server combines the solutions and takes
    the regularisation out again (He et al., AFL: A Single-Round Analytic Approach for Federated
    Learning with Pre-trained Models, CVPR 2025). What comes out is ``G^-1 S`` of the summed Gram
    matrices ``G`` and class sums ``S``, which are a smaller message. A penalty of 10^-6 stands for
    none; with fewer samples than features choose a larger one.

    Stored between experiences: those sums, ``(D, D)`` and ``(C, D)``; no samples.
    On the command line: ``strategy=afl``; in a federation
    ``method.head=ridge method.head.regularization=1e-6``.

    Args:
        **settings: those of :class:`~protocl.heads.Ridge`, such as ``regularization``, and of
            :class:`.FrozenBackbone` but ``head``.
    """

    make_head = staticmethod(partial(Ridge, regularization=1e-6, dtype=torch.float64))


@dataclass
class AFLConfig(SeededRecipeConfig):
    """Settings of :class:`AFL`; ``head`` has those of its head, whose seed is the run's."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="AFL",
        paper="He et al., CVPR 2025",
        stored_between_experiences="Gram matrix and class sums of features",
        keeps_data=False,
        bytes_per_class="16 D + 16",
    )
    recipe = AFL

    name: str = "afl"
    head: Part = part(AFL.make_head, "seed")
