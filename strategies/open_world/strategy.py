"""Ready-made strategies whose features are trained and whose statistics answer."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from protocl.config import Setup
from protocl.config.sections import HeadChoice, Part, head
from protocl.config.validation import AT_LEAST_0, NOT_NEGATIVE, ranged
from protocl.heads import NearestMean
from protocl.heads.base import Head
from protocl.memory import PrototypeMemory
from protocl.strategies.avalanche.epoch_schedule import EpochSchedule, ScheduledConfig
from protocl.strategies.avalanche.in_memory import InMemory
from protocl.strategies.avalanche.optimizers import build_optimizer
from protocl.strategies.drift.compensation import DriftCompensation, DriftEstimator
from protocl.strategies.open_world.discovery import DiscoveryPlugin
from protocl.strategies.open_world.representation import RepresentationPlugin
from protocl.strategies.plugin.prototype_plugin import PrototypePlugin
from protocl.strategies.training.ready_made import ReadyMade
from protocl.strategies.training.views import named_views

logger = logging.getLogger(__name__)


class OpenWorldStrategy(ReadyMade):
    """A strategy whose loss is that of ``method``, and whose answer that of a head on statistics.

    The classification layer of the model is not used.

    Args:
        method: the plugin that trains.
        head: answers; ``NearestMean("cosine")`` by default.
        drift: how the statistics of old classes are carried over when the backbone has moved.
        schedule: epochs of the first experience and decay of the learning rate.
        **settings: those of :class:`.ReadyMade` but ``own``.
    """

    def __init__(
        self,
        *,
        method: RepresentationPlugin,
        head: Head | None = None,
        drift: DriftEstimator | None = None,
        schedule: EpochSchedule | None = None,
        **settings: Any,
    ) -> None:
        self.method = method
        self.prototypes = PrototypePlugin(
            NearestMean("cosine") if head is None else head, layer=method.layer
        )
        carried = DriftCompensation(self.prototypes, DriftEstimator() if drift is None else drift)
        super().__init__(own=[schedule, method, carried, self.prototypes], **settings)

    @property
    def memory(self) -> PrototypeMemory | None:
        """The class statistics, or None before the first experience has ended."""
        return self.prototypes.memory


class DiscoveryStrategy(OpenWorldStrategy):
    """A strategy that also sorts samples without labels.

    Args:
        method: the plugin that trains and sorts.
        **settings: those of :class:`OpenWorldStrategy`.
    """

    method: DiscoveryPlugin

    def categories(self, rows: Tensor) -> Tensor | None:
        """Categories ``(M,)`` of the unlabelled samples at ``rows`` ``(M,)``, as the model is now.

        None where nothing has been trained yet. See :class:`.DiscoveryPlugin` for what their
        numbers mean.
        """
        return self.method.categories(self, rows)


@dataclass
class OpenWorldConfig(ScheduledConfig):
    """Settings of strategies that train features for an open world.

    Attributes:
        nesterov: Nesterov's momentum, of ``optimizer=sgd``.
        cosine_schedule: let the learning rate fall to zero over each experience.
        warmup_epochs: of each experience, over which the learning rate first rises.
        views: ``auto`` (``augmented`` for colour images, else ``copies``), ``augmented`` (on the
            device), ``crop_flip``, ``dataset`` (made by its transform) or ``copies``.
        head: a registered head, which answers from the class statistics.
        drift: how prototypes of old classes are carried over: none, sdc, ldc or adc.
    """

    train_epochs: int = 10
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = False
    cosine_schedule: bool = False
    warmup_epochs: int = ranged(0, AT_LEAST_0)
    views: Literal["auto", "augmented", "crop_flip", "dataset", "copies"] = "auto"
    head: HeadChoice = head("nearest_mean", metric="cosine")
    drift: DriftEstimator = field(default_factory=DriftEstimator)

    @property
    def old_prototypes(self) -> str:
        return self.drift.old_prototypes

    @property
    def unused(self) -> dict[str, str]:
        unused = super().unused | self.drift.unused
        return unused | ({"nesterov": unused["momentum"]} if self.optimizer == "adam" else {})

    def schedule(self) -> EpochSchedule:
        return EpochSchedule(
            self.first_experience_epochs,
            self.milestones,
            cosine=self.cosine_schedule,
            warmup=self.warmup_epochs,
        )

    def common(self, setup: Setup) -> dict[str, Any]:
        """Arguments of :class:`OpenWorldStrategy` but ``method``."""
        return {
            "model": setup.model,
            "optimizer": build_optimizer(self, setup.model, nesterov=self.nesterov),
            "head": self.head.build(),
            "drift": self.drift,
            "schedule": self.schedule(),
            "train_epochs": self.train_epochs,
            "train_mb_size": self.train_mb_size,
            "eval_mb_size": self.eval_mb_size,
            "device": setup.device,
            "plugins": [InMemory(), *setup.plugins],
            "evaluator": setup.evaluator,
        }


@dataclass
class DiscoveryConfig(OpenWorldConfig):
    """Settings of strategies that learn from samples without labels, too.

    Attributes:
        ratio: unlabelled samples in a mini-batch for each labelled one.
        new_categories: in each experience, beside its named classes; null for the true number.
    """

    plugin: Part = field(default_factory=Part)
    ratio: float = ranged(1.0, NOT_NEGATIVE)
    new_categories: int | None = ranged(None, AT_LEAST_0)

    def discovers(self, setup: Setup, **settings: Any) -> Any:
        """The plugin with the unlabelled samples of the benchmark."""
        if setup.unlabelled is None:
            logger.warning(
                "strategy=%s: no sample comes without a label, so that only named classes are "
                "learned; see benchmark.unlabelled and benchmark.new_classes",
                self.name,
            )
        return self.plugin.build(
            unlabelled=setup.unlabelled,
            ratio=self.ratio,
            new_categories=self.new_categories,
            views=named_views(self.views),
            **settings,
        )
