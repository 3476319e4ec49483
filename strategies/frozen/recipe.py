"""Strategies on a frozen backbone that differ in their head alone, and the settings of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Any, ClassVar

from protocl.config import Setup, StrategyConfig, StrategyInfo
from protocl.config.sections import HeadChoice, Part, default_of, head, name_of_head
from protocl.config.validation import AT_LEAST_0, ranged
from protocl.heads.base import Head
from protocl.strategies.avalanche.epoch_schedule import EpochSchedule
from protocl.strategies.avalanche.in_memory import InMemory
from protocl.strategies.avalanche.optimizers import build_optimizer
from protocl.strategies.frozen.base import FrozenBackbone, Sums
from protocl.strategies.frozen.documentation import with_arguments
from protocl.strategies.frozen.first_session import Session

_SESSION = ("session.classifier", "session.two_branches", "session.normalize_branches")
_DESCENT = (
    "milestones", "cosine_schedule", "train_mb_size", "optimizer", "lr", "momentum", "weight_decay",
)  # fmt: skip


class Recipe(FrozenBackbone):
    """A frozen backbone under a head that takes its arguments from those of the strategy.

    A subclass states the head; its own arguments are those of the head, with their defaults, and
    those of :class:`.FrozenBackbone` but ``head``. Its docstring lists them all.

    Attributes:
        make_head: makes the head of its arguments.
    """

    make_head: ClassVar[Callable[..., Head]]

    if TYPE_CHECKING:

        def __init__(self, **settings: Any) -> None: ...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "make_head" in vars(cls):
            cls.__init__ = _constructor(cls.make_head)  # type: ignore[method-assign]
        if cls.__doc__ is not None:
            cls.__doc__ = with_arguments(cls.__doc__, cls.make_head, FrozenBackbone, made="head")
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


@dataclass
class FrozenBackboneConfig(StrategyConfig):
    """Settings of strategies on a frozen backbone.

    Attributes:
        first_experience_epochs: epochs in which the backbone is adapted to the first experience
            before it is frozen; 0 uses it as given. ``train_epochs`` has no meaning here.
        session: what they make of the backbone.
        milestones: epochs of these (from 0) after which ``lr`` falls to a tenth.
        cosine_schedule: let ``lr`` fall to zero over these epochs.
        sums: how statistics are summed.
    """

    first_experience_epochs: int = ranged(
        default_of(FrozenBackbone, "first_experience_epochs"), AT_LEAST_0
    )
    session: Session = field(default_factory=Session)
    milestones: tuple[int, ...] = default_of(EpochSchedule, "milestones")
    cosine_schedule: bool = default_of(EpochSchedule, "cosine")
    sums: Sums = field(default_factory=Sums)

    @property
    def trains_backbone(self) -> bool:
        return self.session.adaptation(self.first_experience_epochs) != "none"

    @property
    def adaptation(self) -> dict[str, Any] | None:
        if not self.trains_backbone:
            return None
        decides = {name: getattr(self, name) for name in ("first_experience_epochs", *_DESCENT)}
        adapt = self.session.adaptation(self.first_experience_epochs)
        return decides | vars(self.session) | {"adapt": adapt}

    @property
    def unused(self) -> dict[str, str]:
        unused = super().unused | {"train_epochs": "its epochs are first_experience_epochs"}
        if not self.sums.exact:
            unused["sums.step"] = "sums are in fixed point only with sums.exact=true"
        if self.trains_backbone:
            if not self.session.two_branches:
                unused["session.normalize_branches"] = (
                    "there are branches only with session.two_branches=true"
                )
            return unused
        if self.first_experience_epochs == 0:
            reason = "nothing is trained with first_experience_epochs=0"
            return unused | dict.fromkeys((*_SESSION, *_DESCENT), reason)
        reason = "session.adapt=none trains nothing"
        return unused | dict.fromkeys(("first_experience_epochs", *_SESSION, *_DESCENT), reason)

    @property
    def old_prototypes(self) -> str:
        return "exact"  # nothing is stored before the backbone stays

    def _build(
        self, setup: Setup, kind: Callable[..., FrozenBackbone], **settings: Any
    ) -> FrozenBackbone:
        """A strategy of class ``kind`` with ``settings`` of its own."""
        trains = self.trains_backbone
        schedule = EpochSchedule(milestones=self.milestones, cosine=self.cosine_schedule)
        return kind(
            model=setup.model,
            first_experience_epochs=self.first_experience_epochs,
            session=self.session,
            optimizer=build_optimizer(self, setup.model) if trains else None,
            # A backbone that is trained is another one afterwards, whose own it then gets.
            fingerprint=None if trains else setup.fingerprint,
            sums=self.sums,
            train_mb_size=self.train_mb_size,
            eval_mb_size=self.eval_mb_size,
            device=setup.device,
            plugins=[schedule, InMemory(), *setup.plugins],
            evaluator=setup.evaluator,
            **settings,
        )


@dataclass
class RecipeConfig(FrozenBackboneConfig):
    """Settings of a :class:`Recipe`; a subclass names the head's as ``head``.

    Attributes:
        recipe: the strategy.
        head: arguments of its head.
    """

    recipe: ClassVar[type[Recipe]]

    head: Part = field(default_factory=Part)

    @classmethod
    def refusal(cls, setting: str, value: Any) -> str | None:
        if setting != "head":
            return super().refusal(setting, value)
        fixed = name_of_head(cls.recipe.make_head)
        if value == fixed:
            return "has this head anyway; leave it out"
        return f"has a fixed head, {fixed}; for another type strategy=frozen strategy.head={value}"

    def build(self, setup: Setup) -> FrozenBackbone:
        return self._build(setup, self.recipe, **self.head.arguments)


@dataclass
class SeededRecipeConfig(RecipeConfig):
    """Settings of a :class:`Recipe` whose head draws numbers, by the seed of the run."""

    def build(self, setup: Setup) -> FrozenBackbone:
        return self._build(setup, self.recipe, seed=setup.seed, **self.head.arguments)


@dataclass
class AnyHeadConfig(FrozenBackboneConfig):
    """Any registered head over a frozen backbone: ``strategy=frozen strategy.head=NAME``.

    Attributes:
        head: the head, and its arguments.
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="Frozen backbone",
        paper="-",
        stored_between_experiences="count and mean of each class, and what else its head needs",
        keeps_data=False,
        bytes_per_class="16 D + 16",
    )

    name: str = "frozen"
    head: HeadChoice = head("nearest_mean")

    def build(self, setup: Setup) -> FrozenBackbone:
        return self._build(setup, FrozenBackbone, head=self.head.build())
