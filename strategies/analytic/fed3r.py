"""Ridge regression with a bias and unit weights over a frozen backbone: Fed3R."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from protocl.config import StrategyInfo
from protocl.config.sections import Part, part
from protocl.heads import Ridge
from protocl.strategies.frozen.recipe import Recipe, SeededRecipeConfig


class Fed3R(Recipe):
    """Ridge regression with a bias and unit weights over a frozen backbone: Fed3R.

    Clients send the Gram matrix and the class sums of their features; the server solves once. The
    result is that of all samples in one place, whatever the split (Fanì et al., Accelerating
    Heterogeneous Federated Learning with Closed-form Classifiers, ICML 2024). As in the authors'
    repository the constant feature is shrunk like the others and each class's weights are divided
    by their norm; ``bias=False`` is the variant that FedCOF's repository compares with.

    Stored between experiences: those sums, ``(D, D)`` and ``(C, D)``; no samples.
    On the command line: ``strategy=fed3r strategy.head.regularization=0.1``; in a federation
    ``method.head=ridge method.head.bias=true method.head.normalize=true
    method.head.regularization=0.01``.

    Args:
        **settings: those of :class:`~protocl.heads.Ridge`, such as ``regularization``, and of
            :class:`.FrozenBackbone` but ``head``.
    """

    make_head = staticmethod(partial(Ridge, regularization=0.01, bias=True, normalize=True))


@dataclass
class Fed3RConfig(SeededRecipeConfig):
    """Settings of :class:`Fed3R`; ``head`` has those of its head, whose seed is the run's."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="Fed3R",
        paper="Fanì et al., ICML 2024",
        stored_between_experiences="Gram matrix and class sums of features",
        keeps_data=False,
        bytes_per_class="16 D + 16",
    )
    recipe = Fed3R

    name: str = "fed3r"
    head: Part = part(Fed3R.make_head, "seed")
