"""Ready-made strategies that train without exemplars, and the settings they share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from protocl.config import Setup
from protocl.config.sections import Part, default_of
from protocl.config.validation import POSITIVE, ranged
from protocl.memory import PrototypeMemory
from protocl.strategies.avalanche.epoch_schedule import EpochSchedule, ScheduledConfig
from protocl.strategies.avalanche.in_memory import InMemory
from protocl.strategies.avalanche.optimizers import build_optimizer
from protocl.strategies.avalanche.restarts import Restarts
from protocl.strategies.drift.compensation import DriftEstimator
from protocl.strategies.exemplar_free.plugin import ExemplarFreePlugin
from protocl.strategies.training.ready_made import ReadyMade


class ExemplarFree(ReadyMade):
    """A strategy whose loss and answer are those of ``method``.

    The classification layer of the model is not used, and each experience starts with the moments
    of the optimizer forgotten.

    Args:
        method: the plugin that makes the strategy what it is.
        later_lr_factor: later experiences begin at this multiple of the first one's rate.
        schedule: epochs of the first experience and decay of the learning rate.
        **settings: those of :class:`.ReadyMade` but ``own``.
    """

    def __init__(
        self,
        *,
        method: ExemplarFreePlugin,
        later_lr_factor: float = 1.0,
        schedule: EpochSchedule | None = None,
        **settings: Any,
    ) -> None:
        self.method = method
        super().__init__(own=[method, Restarts(later_lr_factor), schedule], **settings)

    @property
    def memory(self) -> PrototypeMemory | None:
        """The class statistics, or None before the first experience has ended."""
        return self.method.memory


@dataclass
class ExemplarFreeConfig(ScheduledConfig):
    """Settings of strategies that train the backbone without exemplars.

    Attributes:
        later_lr_factor: later experiences begin at this multiple of ``lr``.
        plugin: arguments of the method's plugin.
        drift: how prototypes of old classes are carried over: none, sdc, ldc, dpcr or adc.
    """

    train_epochs: int = 10
    optimizer: Literal["sgd", "adam"] = "adam"
    lr: float = 1e-3
    weight_decay: float = 2e-4
    milestones: tuple[int, ...] = (6,)
    later_lr_factor: float = ranged(default_of(ExemplarFree, "later_lr_factor"), POSITIVE)
    plugin: Part = field(default_factory=Part)
    drift: DriftEstimator = field(default_factory=DriftEstimator)

    @property
    def old_prototypes(self) -> str:
        return self.drift.old_prototypes

    @property
    def unused(self) -> dict[str, str]:
        return super().unused | self.drift.unused

    def build(self, setup: Setup) -> ExemplarFree:
        return self._build(self.plugin.build(drift=self.drift), setup)

    def _build(self, method: ExemplarFreePlugin, setup: Setup) -> ExemplarFree:
        return ExemplarFree(
            model=setup.model,
            optimizer=build_optimizer(self, setup.model),
            method=method,
            later_lr_factor=self.later_lr_factor,
            schedule=self.schedule(),
            train_epochs=self.train_epochs,
            train_mb_size=self.train_mb_size,
            eval_mb_size=self.eval_mb_size,
            device=setup.device,
            plugins=[InMemory("model"), *setup.plugins],
            evaluator=setup.evaluator,
        )
