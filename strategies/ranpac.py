"""Ridge regression on random features of a frozen backbone: RanPAC."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from protocl.config import StrategyInfo
from protocl.config.sections import Part, part
from protocl.heads import Ridge
from protocl.strategies.frozen.recipe import Recipe, SeededRecipeConfig


class RanPAC(Recipe):
    """Ridge regression on random features of a frozen backbone: RanPAC.

    A fixed random projection with ReLU makes classes more nearly separable; a ridge regression on
    it follows from two sums, the Gram matrix and the class sums (McDonnell et al., RanPAC: Random
    Projections and Pre-trained Models for Continual Learning, NeurIPS 2023).

    Stored between experiences: those sums, ``(M, M)`` and ``(C, M)``, and the seed of the
    projection; no samples. M = 2000 takes 64 MiB, the paper's M = 10000 takes 1.6 GiB.
    On the command line: ``strategy=ranpac strategy.head.projection=1000``.

    Args:
        **settings: those of :class:`~protocl.heads.Ridge`, such as ``projection`` (2000 by
            default), and of :class:`.FrozenBackbone` but ``head``.
    """

    make_head = staticmethod(partial(Ridge, projection=2000))


@dataclass
class RanPACConfig(SeededRecipeConfig):
    """Settings of :class:`RanPAC`; ``head`` has those of its head, whose seed is the run's."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="RanPAC",
        paper="McDonnell et al., NeurIPS 2023",
        stored_between_experiences="Gram matrix and class sums of random features",
        keeps_data=False,
        bytes_per_class="16 M + 16",
    )
    recipe = RanPAC

    name: str = "ranpac"
    head: Part = part(RanPAC.make_head, "seed")
