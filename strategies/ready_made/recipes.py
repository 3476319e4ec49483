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
from protocl.strategies.frozen.documentation import with_arguments
from protocl.strategies.frozen.recipe import RecipeConfig
from protocl.strategies.nearest_mean import NearestMeanConfig
from protocl.strategies.ranpac import RanPACConfig
from protocl.strategies.simplecil import SimpleCILConfig
from protocl.strategies.slda import SLDAConfig


class Recipe(FrozenBackbone):
    """A frozen backbone under a head that takes its arguments from those of the strategy.

    Its own arguments are those of the head that its settings configure, with their defaults, and
    those of :class:`.FrozenBackbone` but ``head``. Its docstring lists them all.

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
            if cls.__doc__ is not None:
                cls.__doc__ = with_arguments(cls.__doc__, make_head, FrozenBackbone, made="head")
        super().__init_subclass__(**kwargs)


def _constructor(make_head: Callable[..., Head]) -> Callable[..., None]:
    """``__init__`` with the arguments of ``make_head``, where Avalanche looks for known ones."""
    arguments = signature(make_head).parameters

    def construct(self: Any, **settings: Any) -> None:
        own = {name: settings.pop(name) for name in arguments if name in settings}
        FrozenBackbone.__init__(self, head=make_head(**own), **settings)

    shown = [argument.replace(kind=Parameter.KEYWORD_ONLY) for argument in arguments.values()]
    instance, others = signature(construct).parameters.values()
    construct.__name__, construct.__qualname__ = "__init__", "Recipe.__init__"
    construct.__signature__ = Signature([instance, *shown, others])  # type: ignore[attr-defined]
    return construct


class NearestMean(Recipe):
    """Nearest class mean over a frozen backbone.

    A class is the mean of its features, a sample belongs to the nearest mean (Mensink et al.,
    TPAMI 2013). The switches give NMC (Janson et al., A Simple Baseline that Questions the Use of
    Pretrained-Models in Continual Learning, 2022: normalised inputs), SimpleCIL (Zhou et al., IJCV
    2024: cosine) and the rule of prototypical networks (Snell et al., NeurIPS 2017: all off).

    Stored between experiences: count and mean of each class, ``8 (D + 1)`` bytes a class and as
    many again for the rounding errors; no samples.
    On the command line: ``strategy=nearest_mean strategy.head.metric=cosine``.

    Args:
        **settings: those of :class:`protocl.heads.NearestMean`, such as ``metric``, and of
            :class:`.FrozenBackbone` but ``head``.

    Example:
        >>> from protocl.checks import toy
        >>> toy.learn(NearestMean(model=toy.model()))  # accuracy after each experience
        [1.0, 1.0, 0.972]
    """

    settings = NearestMeanConfig


class SimpleCIL(Recipe):
    """Nearest class mean by cosine over a frozen backbone: SimpleCIL, as published.

    A class is the mean of its features as they are, a sample belongs to the mean of largest cosine
    (Zhou et al., Revisiting Class-Incremental Learning with Pre-Trained Models, IJCV 2024). Not the
    same as NMC (Janson et al., 2022), which divides each feature vector by its norm before
    averaging and compares by Euclidean distance, so that a mean's length counts: ``nearest_mean``
    with ``normalize_input``.

    Stored between experiences: count and mean of each class; no samples.
    On the command line: ``strategy=simplecil``.

    Args:
        **settings: those of :class:`.FrozenBackbone` but ``head``.

    Example:
        >>> from protocl.checks import toy
        >>> toy.learn(SimpleCIL(model=toy.model()))  # accuracy after each experience
        [1.0, 1.0, 0.972]
    """

    settings = SimpleCILConfig


class SLDA(Recipe):
    """Linear discriminant analysis over a frozen backbone: SLDA, exact.

    All classes share one covariance, so the boundaries are linear and follow from class means and
    one matrix: ``w_c . (f - m) + b_c``. Deep SLDA (Hayes & Kanan, Lifelong Machine Learning with
    Deep Streaming Linear Discriminant Analysis, CVPR Workshops 2020) keeps a running estimate of
    that matrix, which depends on the order of the samples; here it is the covariance itself,
    whatever the order. ``streaming=True`` gives theirs.

    Stored between experiences: count and mean of each class and one ``(D, D)`` matrix; no samples.
    On the command line: ``strategy=slda strategy.head.shrinkage=0.1``.

    Args:
        **settings: those of :class:`~protocl.heads.LinearDiscriminant`, such as ``shrinkage``, and
            of :class:`.FrozenBackbone` but ``head``.

    Example:
        >>> from protocl.checks import toy
        >>> toy.learn(SLDA(model=toy.model()))  # accuracy after each experience
        [1.0, 1.0, 1.0]
    """

    settings = SLDAConfig


class FeCAM(Recipe):
    """Mahalanobis distance with one covariance for each class, over a frozen backbone: FeCAM.

    Classes differ in shape, not only in place, so each has its own covariance, shrunk and
    normalised to correlations to be comparable (Goswami et al., FeCAM: Exploiting the
    Heterogeneity of Class Distributions in Exemplar-Free Continual Learning, NeurIPS 2023).

    Stored between experiences: count and two means of each class and one ``(D, D)`` matrix a class;
    no samples. For 512 features that is 4 MiB a class (with the rounding errors kept alongside).
    On the command line: ``strategy=fecam strategy.head.tukey=null``.

    Args:
        **settings: those of :class:`~protocl.heads.Mahalanobis`, such as ``shrinkage`` and
            ``tukey``, and of :class:`.FrozenBackbone` but ``head``.

    Example:
        >>> from protocl.checks import toy
        >>> toy.learn(FeCAM(model=toy.model()))  # accuracy after each experience
        [1.0, 0.958, 0.944]
    """

    settings = FeCAMConfig


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

    Example:
        >>> from protocl.checks import toy
        >>> toy.learn(RanPAC(model=toy.model(), projection=50))  # accuracy after each experience
        [1.0, 1.0, 1.0]
    """

    settings = RanPACConfig
