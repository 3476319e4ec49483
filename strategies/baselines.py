"""Avalanche's own strategies, for comparison; prototypes may answer in their classifier's place.

They learn by gradient descent on the whole model, or, with ``freeze_backbone``, on its classifier
over fixed features. :class:`Joint` is the one exception, for Avalanche's takes the whole stream in
one call and so cannot be evaluated after each experience.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from avalanche.training import EWC, Cumulative, ICaRL, LwF, Naive, Replay
from avalanche.training.plugins import ReplayPlugin
from torch import nn

from protocl.config import Setup, StrategyInfo
from protocl.config.sections import HeadChoice
from protocl.config.validation import AT_LEAST_0, NOT_NEGATIVE, POSITIVE, ranged
from protocl.errors import ConfigError
from protocl.memory.batch import Level
from protocl.model import answers
from protocl.strategies.avalanche.epoch_schedule import ScheduledConfig
from protocl.strategies.avalanche.in_memory import InMemory
from protocl.strategies.avalanche.kept import nearest_means
from protocl.strategies.avalanche.optimizers import build_optimizer
from protocl.strategies.drift.compensation import DriftCompensation, DriftEstimator
from protocl.strategies.exemplars.sample_memory import SampleMemory, Selection
from protocl.strategies.plugin.model_output import ScoresCrossEntropy
from protocl.strategies.plugin.prototype_plugin import PrototypePlugin


@dataclass
class BaselineConfig(ScheduledConfig):
    """Settings that the baselines share.

    Attributes:
        freeze_backbone: train only a classifier over the features of the backbone as given.
    """

    train_epochs: int = 10
    lr: float = 0.05
    momentum: float = 0.9
    freeze_backbone: bool = False

    @property
    def trains_backbone(self) -> bool:
        return not self.freeze_backbone

    def prototype_plugins(self) -> list[Any]:
        """Plugins that answer in the place of the classifier."""
        return []

    def _build(self, kind: Callable[..., Any], setup: Setup, **settings: Any) -> Any:
        """An Avalanche strategy of class ``kind`` on the model of ``setup``."""
        return self._build_around(
            kind, setup, model=setup.model, criterion=ScoresCrossEntropy(), **settings
        )

    def _build_around(self, kind: Callable[..., Any], setup: Setup, **settings: Any) -> Any:
        """The same for strategies that put model and loss together themselves."""
        setup.model.backbone.requires_grad_(self.trains_backbone)
        return kind(
            optimizer=build_optimizer(self, setup.model),
            train_epochs=self.train_epochs,
            train_mb_size=self.train_mb_size,
            eval_mb_size=self.eval_mb_size,
            device=setup.device,
            plugins=[self.schedule(), *self.prototype_plugins(), InMemory("model"), *setup.plugins],
            evaluator=setup.evaluator,
            **settings,
        )


@dataclass
class Answer(HeadChoice):
    """What answers: ``classifier``, the model's own, or a registered head."""

    name: str = "classifier"

    @classmethod
    def named(cls, name: str, **defaults: Any) -> type[HeadChoice]:
        """The settings of the head that is registered under ``name``; ``classifier`` has none."""
        return Answer if name == "classifier" else super().named(name, **defaults)


@dataclass
class AnsweredBaselineConfig(BaselineConfig):
    """Settings of baselines whose prototypes can answer instead of their classifier.

    Attributes:
        answer: ``classifier``, or a registered head on the class statistics of each experience
            (``nearest_mean``, ``lda``, ...) and its arguments.
        drift: how the statistics of old classes are carried over when the backbone has moved:
            none, sdc, ldc, dpcr or adc.
    """

    answer: Answer = field(default_factory=Answer)
    drift: DriftEstimator = field(default_factory=DriftEstimator)

    @property
    def old_prototypes(self) -> str:
        if self.answer.name == "classifier":
            return "none"
        return self.drift.old_prototypes if self.trains_backbone else "exact"

    @property
    def unused(self) -> dict[str, str]:
        return super().unused | self.drift.unused

    def prototype_plugins(self) -> list[Any]:
        if self.answer.name == "classifier":
            if self.drift.method != "none":
                raise ConfigError(
                    f"strategy.drift={self.drift.method}: there are no prototypes to carry over; "
                    "add strategy.answer=nearest_mean or another head"
                )
            return []
        level: Level | None = "full" if self.drift.method == "dpcr" else None
        prototypes = PrototypePlugin(self.answer.build(), level=level)
        return [DriftCompensation(prototypes, self.drift), prototypes]


@dataclass
class NaiveConfig(AnsweredBaselineConfig):
    """Gradient descent on each experience in turn, with nothing against forgetting.

    >>> from protocl.checks import toy
    >>> toy.learn(NaiveConfig(train_epochs=5, train_mb_size=12))[-1] < 0.5  # at the end
    True
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="Naive",
        paper="-",
        stored_between_experiences="nothing",
        keeps_data=False,
        bytes_per_class="0",
    )

    name: str = "naive"

    def build(self, setup: Setup) -> Naive:
        return self._build(Naive, setup)


@dataclass
class ReplayConfig(AnsweredBaselineConfig):
    """Experience replay: batches of new samples beside batches from a buffer of old ones.

    Attributes:
        mem_size: samples in the buffer.
        selection: which; ``random`` is Avalanche's own buffer, for ``medoids`` see
            :class:`.SampleMemory`.

    >>> from protocl.checks import toy
    >>> toy.learn(ReplayConfig(train_epochs=5, train_mb_size=12, mem_size=60))[-1] > 0.5
    True
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="Replay",
        paper="Chaudhry et al., 2019",
        stored_between_experiences="samples, at most mem_size",
        keeps_data=True,
        bytes_per_class="0",
    )

    name: str = "replay"
    mem_size: int = ranged(200, AT_LEAST_0)
    selection: Selection = "random"

    def build(self, setup: Setup) -> Replay | Naive:
        if self.selection == "random":
            return self._build(Replay, setup, mem_size=self.mem_size)
        samples = SampleMemory(self.mem_size, self.selection)
        strategy: Naive = self._build(Naive, setup)
        strategy.plugins.append(ReplayPlugin(self.mem_size, storage_policy=samples))
        return strategy


@dataclass
class LwFConfig(AnsweredBaselineConfig):
    """Learning without forgetting: distil the outputs of the model before the experience.

    Attributes:
        alpha: weight of the distillation.
        temperature: of the softmax that is distilled.

    >>> from protocl.checks import toy
    >>> toy.learn(LwFConfig(train_epochs=5, train_mb_size=12))[-1] < 0.5  # at the end
    True
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="LwF",
        paper="Li & Hoiem, ECCV 2016",
        stored_between_experiences="the model before the experience",
        keeps_data=False,
        bytes_per_class="0",
    )

    name: str = "lwf"
    alpha: float = ranged(1.0, NOT_NEGATIVE)
    temperature: float = ranged(2.0, POSITIVE)

    def build(self, setup: Setup) -> LwF:
        return self._build(LwF, setup, alpha=self.alpha, temperature=self.temperature)


@dataclass
class EWCConfig(AnsweredBaselineConfig):
    """Elastic weight consolidation: hold on to weights that mattered to earlier experiences.

    Attributes:
        ewc_lambda: weight of the penalty.
        mode: ``separate`` for one penalty for each experience, ``online`` for a decaying one.
        decay_factor: of the online penalty.

    >>> from protocl.checks import toy
    >>> toy.learn(EWCConfig(train_epochs=5, train_mb_size=12))[-1] < 0.5  # at the end
    True
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="EWC",
        paper="Kirkpatrick et al., PNAS 2017",
        stored_between_experiences="weights and their importance, for each experience",
        keeps_data=False,
        bytes_per_class="0",
    )

    name: str = "ewc"
    ewc_lambda: float = ranged(100.0, NOT_NEGATIVE)
    mode: Literal["separate", "online"] = "separate"
    decay_factor: float | None = None

    def build(self, setup: Setup) -> EWC:
        if (self.mode == "online") != (self.decay_factor is not None):
            raise ValueError(
                f"mode='{self.mode}' with decay_factor={self.decay_factor}: the online penalty "
                "needs a factor, such as 0.9, and the separate ones take none"
            )
        penalty = {"ewc_lambda": self.ewc_lambda, "mode": self.mode}
        return self._build(EWC, setup, **penalty, decay_factor=self.decay_factor)


@dataclass
class AvalancheICaRLConfig(BaselineConfig):
    """iCaRL: distillation and replay of exemplars, classification by their mean features.

    Attributes:
        mem_size: exemplars of all classes together.

    >>> from protocl.checks import toy
    >>> toy.learn(AvalancheICaRLConfig(train_epochs=5, train_mb_size=12))[-1] > 0.5  # at the end
    True
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="iCaRL",
        paper="Rebuffi et al., CVPR 2017",
        stored_between_experiences="samples, at most mem_size, and the model before",
        keeps_data=True,
        bytes_per_class="0",
    )

    name: str = "icarl"
    mem_size: int = ranged(200, AT_LEAST_0)

    def build(self, setup: Setup) -> ICaRL:
        return self._build_around(
            ICaRL,
            setup,
            feature_extractor=setup.model.backbone,
            classifier=setup.model.classifier,
            memory_size=self.mem_size,
            buffer_transform=None,
            fixed_memory=True,
        )

    def kept_answer(self, strategy: ICaRL) -> answers.Answer:
        return nearest_means(strategy.model.eval_classifier)


@dataclass
class CumulativeConfig(BaselineConfig):
    """Train on, in each experience, with all data so far.

    >>> from protocl.checks import toy
    >>> toy.learn(CumulativeConfig(train_epochs=5, train_mb_size=12))[-1] > 0.5  # at the end
    True
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="Cumulative",
        paper="-",
        stored_between_experiences="all samples",
        keeps_data=True,
        bytes_per_class="0",
    )

    name: str = "cumulative"

    def build(self, setup: Setup) -> Cumulative:
        return self._build(Cumulative, setup)


class Joint(Cumulative):
    """Joint training, so that it can be evaluated after each experience.

    Each experience begins again from the initial weights and trains on all data so far. After the
    last one this is ``avalanche.training.JointTraining`` on the whole stream: the upper bound.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.model: nn.Module
        self._initial: nn.Module = copy.deepcopy(self.model)

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Start anew, then adapt model and optimizer as Avalanche does."""
        self.model = copy.deepcopy(self._initial).to(self.device).train()
        self.optimized_param_id = None
        super().check_model_and_optimizer(**kwargs)


@dataclass
class JointTrainingConfig(BaselineConfig):
    """Train from scratch, in each experience, on all data so far: the upper bound.

    >>> from protocl.checks import toy
    >>> toy.learn(JointTrainingConfig(train_epochs=5, train_mb_size=12))[-1] > 0.5  # at the end
    True
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="Joint",
        paper="-",
        stored_between_experiences="all samples",
        keeps_data=True,
        bytes_per_class="0",
    )

    name: str = "joint"

    def build(self, setup: Setup) -> Joint:
        return self._build(Joint, setup)
