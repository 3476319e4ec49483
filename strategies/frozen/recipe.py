"""Settings of strategies on a frozen backbone, of which those here differ in their head alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from protocl.config import Setup, StrategyConfig, StrategyInfo
from protocl.config.sections import HeadChoice, Part, default_of, head, name_of_head
from protocl.config.validation import AT_LEAST_0, POSITIVE, ranged
from protocl.heads.base import Head
from protocl.memory.kind import Moments
from protocl.strategies.avalanche.epoch_schedule import EpochSchedule
from protocl.strategies.avalanche.optimizers import build_optimizer
from protocl.strategies.frozen.session import Session
from protocl.strategies.plugin.prototypes import Prototypes

if TYPE_CHECKING:
    from protocl.backbones import Backbone
    from protocl.strategies.frozen.base import FrozenBackbone

_SESSION = ("session.classifier", "session.two_branches", "session.normalize_branches")
_DESCENT = (
    "milestones", "cosine_schedule", "train_mb_size", "optimizer", "lr", "momentum", "weight_decay",
)  # fmt: skip


@dataclass(frozen=True)
class Sums:
    """How statistics are summed.

    Attributes:
        exact: in fixed point, so that any order of experiences or clients gives the same bits.
        step: its quantisation step.
        moments: ``single`` keeps one number an entry of second moments, whose rounding grows with
            the number of batches, and ``pairs`` two where that is to be kept: see
            :mod:`protocl.memory.kind` and docs/many_classes.md.
        forgettable: keep second moments of each class, so that the model of the run can forget a
            class by name where its head shares one covariance.

    Example:
        >>> Sums(exact=True, forgettable=True).arguments
        {'exact': True, 'step': 1.52587890625e-05, 'moments': 'pairs', 'level': 'full'}
    """

    exact: bool = default_of(Prototypes, "exact")
    step: float = ranged(default_of(Prototypes, "step"), POSITIVE)
    moments: Moments = default_of(Prototypes, "moments")
    forgettable: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of :class:`.Prototypes`."""
        kept = {"level": "full"} if self.forgettable else {}
        return {"exact": self.exact, "step": self.step, "moments": self.moments, **kept}


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

    first_experience_epochs: int = ranged(0, AT_LEAST_0)
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
    def needs_same_bits(self) -> bool:
        return self.sums.exact

    @property
    def old_prototypes(self) -> str:
        return "exact"  # nothing is stored before the backbone stays

    def _build(
        self, setup: Setup, kind: Callable[..., FrozenBackbone], **settings: Any
    ) -> FrozenBackbone:
        """A strategy of class ``kind`` with ``settings`` of its own."""
        from protocl.strategies.avalanche.in_memory import InMemory

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
            plugins=[schedule, InMemory("model"), *setup.plugins],
            evaluator=setup.evaluator,
            **settings,
        )


@dataclass
class RecipeConfig(FrozenBackboneConfig):
    """Settings of a strategy that is a head over a frozen backbone.

    Attributes:
        head: arguments of the head; a subclass says of which.
    """

    head: Part = field(default_factory=Part)

    @classmethod
    def refusal(cls, setting: str, value: Any) -> str | None:
        if setting != "head":
            return super().refusal(setting, value)
        made_by = type(cls().head).made_by
        fixed = "of its own" if made_by is None else name_of_head(made_by)
        if value == fixed:
            return "has this head anyway; leave it out"
        return f"has a fixed head, {fixed}; for another type strategy=frozen strategy.head={value}"

    def build_head(self, setup: Setup) -> Head:
        """The head with these settings."""
        made: Head = self.head.build()
        return made

    def build(self, setup: Setup) -> FrozenBackbone:
        from protocl.strategies.frozen.base import FrozenBackbone

        return self._build(setup, FrozenBackbone, head=self.build_head(setup))

    def learner(self, setup: Setup) -> Prototypes | None:
        """What :meth:`build` makes, without its host; None where something is to be trained.

        And for a subclass that builds another strategy.
        """
        return None if self.trains_backbone else self.feature_learner(setup)

    def feature_learner(self, setup: Setup) -> Prototypes | None:
        """As :meth:`learner`, also where the backbone has been adapted before it stays."""
        if type(self).build is not RecipeConfig.build:
            return None
        return Prototypes(
            self.build_head(setup),
            fingerprint=setup.fingerprint,
            **self.sums.arguments,
        )

    def adapt_together(self, setup: Setup, experience: Any) -> Backbone:
        from protocl.strategies.frozen.shared_session import adapt_together

        return adapt_together(self.build(setup), experience)


@dataclass
class SeededRecipeConfig(RecipeConfig):
    """Settings of a strategy whose head draws numbers, by the seed of the run."""

    def build_head(self, setup: Setup) -> Head:
        made: Head = self.head.build(seed=setup.seed)
        return made


@dataclass
class AnyHeadConfig(RecipeConfig):
    """Any registered head over a frozen backbone: ``strategy=frozen strategy.head=NAME``.

    Attributes:
        head: the head, and its arguments.

    Example:
        >>> from protocl.checks import toy
        >>> toy.learn(AnyHeadConfig())  # accuracy after each experience
        [1.0, 1.0, 0.972]
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="Frozen backbone",
        paper="-",
        stored_between_experiences="count and mean of each class, and what else its head needs",
        keeps_data=False,
        bytes_per_class="16 D + 16",
        trains_backbone=False,
    )

    name: str = "frozen"
    head: HeadChoice = head("nearest_mean")
