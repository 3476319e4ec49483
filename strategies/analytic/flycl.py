"""Ridge regression on the largest of sparse random features: Fly-CL."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from protocl.config import StrategyInfo
from protocl.config.sections import Part, part
from protocl.heads import Ridge
from protocl.strategies.frozen.recipe import Recipe, SeededRecipeConfig


class FlyCL(Recipe):
    """Ridge regression on the largest of sparse random features: Fly-CL.

    Each random feature looks at few features, and of each sample the largest are kept, as in the
    olfactory circuit of a fly (Fly-CL, ICLR 2026). The authors choose the strength on the samples
    of the current experience; here generalised cross-validation chooses it from the sums over all,
    so that merged statistics choose alike.

    Stored between experiences: the Gram matrix ``(M, M)``, the class sums ``(C, M)`` and the seed
    of the random features; no samples. M = 2000 takes 64 MiB, the paper's M = 10000 takes 1.6 GiB.
    On the command line: ``strategy=flycl strategy.head.map=top_k:dim=10000:degree=300:keep=0.3``.

    Args:
        **settings: those of :class:`~protocl.heads.Ridge`, such as ``regularization``, and of
            :class:`.FrozenBackbone` but ``head``.
    """

    make_head = staticmethod(partial(Ridge, map="top_k:dim=2000:degree=300:keep=0.3"))


@dataclass
class FlyCLConfig(SeededRecipeConfig):
    """Settings of :class:`FlyCL`; ``head`` has those of its head, whose seed is the run's."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="Fly-CL",
        paper="ICLR 2026",
        stored_between_experiences="Gram matrix and class sums of random features",
        keeps_data=False,
        bytes_per_class="16 M + 16",
    )
    recipe = FlyCL

    name: str = "flycl"
    head: Part = part(FlyCL.make_head, "seed")
