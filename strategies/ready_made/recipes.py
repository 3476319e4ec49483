"""The ready-made strategies that differ in their head alone, for Avalanche's users.

Their settings, and what each method is, are in the module of its name: :mod:`protocl.strategies`.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Any, ClassVar

from protocl.heads.base import Head
from protocl.strategies.fecam import FeCAMConfig
from protocl.strategies.frozen.base import FrozenBackbone
from protocl.strategies.frozen.recipe import RecipeConfig
from protocl.strategies.nearest_mean import NearestMeanConfig
from protocl.strategies.ranpac import RanPACConfig
from protocl.strategies.simplecil import SimpleCILConfig
from protocl.strategies.slda import SLDAConfig


class Recipe(FrozenBackbone):
    """A frozen backbone under a head that takes its arguments from those of the strategy.

    Its own arguments are those of the head that its settings configure, with their defaults, and
    those of :class:`.FrozenBackbone` but ``head``.

    Attributes:
        settings: of the strategy; a subclass states them.
    """

    settings: ClassVar[type[RecipeConfig]]

    if TYPE_CHECKING:

        def __init__(self, **settings: Any) -> None: ...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        make_head = type(cls.settings().head).made_by if "settings" in vars(cls) else None
        if make_head is not None:
            cls.__init__ = _constructor(make_head)  # type: ignore[method-assign]
        super().__init_subclass__(**kwargs)


def _constructor(make_head: Callable[..., Head]) -> Callable[..., None]:
    """``__init__`` with the arguments of ``make_head``, where Avalanche looks for known ones."""
    arguments = signature(make_head).parameters

    def construct(self: Any, **settings: Any) -> None:
        own = {name: settings.pop(name) for name in arguments if name in settings}
        FrozenBackbone.__init__(self, head=make_head(**own), **settings)

    shown = [argument.replace(kind=Parameter.KEYWORD_ONLY) for argument in arguments.values()]
    instance, others = signature(construct).parameters.values()
    construct.__signature__ = Signature([instance, *shown, others])  # type: ignore[attr-defined]
    return construct


class NearestMean(Recipe):
    """Nearest class mean.

    Args:
        **settings: those of :class:`protocl.heads.NearestMean`, such as ``metric``, and of
            :class:`.FrozenBackbone` but ``head``.
    """

    settings = NearestMeanConfig


class SimpleCIL(Recipe):
    """Nearest class mean by cosine, as published.

    Args:
        **settings: those of :class:`.FrozenBackbone` but ``head``.
    """

    settings = SimpleCILConfig


class SLDA(Recipe):
    """Linear discriminant analysis.

    Args:
        **settings: those of :class:`~protocl.heads.LinearDiscriminant`, such as ``shrinkage``, and
            of :class:`.FrozenBackbone` but ``head``.
    """

    settings = SLDAConfig


class FeCAM(Recipe):
    """Mahalanobis distance per class.

    Args:
        **settings: those of :class:`~protocl.heads.Mahalanobis`, such as ``shrinkage`` and
            ``tukey``, and of :class:`.FrozenBackbone` but ``head``.
    """

    settings = FeCAMConfig


class RanPAC(Recipe):
    """Ridge regression on random features.

    Args:
        **settings: those of :class:`~protocl.heads.Ridge`, such as ``projection`` (2000 by
            default), and of :class:`.FrozenBackbone` but ``head``.
    """

    settings = RanPACConfig
