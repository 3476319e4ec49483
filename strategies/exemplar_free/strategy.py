"""Ready-made strategies around an :class:`.ExemplarFreePlugin`, and the settings they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from avalanche.training.plugins.evaluation import default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import nn, optim

from protocl.config import Setup
from protocl.config.sections import Part, default_of
from protocl.config.validation import POSITIVE, ranged
from protocl.memory import PrototypeMemory
from protocl.strategies.avalanche.epoch_schedule import EpochSchedule, ScheduledConfig
from protocl.strategies.avalanche.in_memory import InMemory
from protocl.strategies.avalanche.optimizers import build_optimizer
from protocl.strategies.avalanche.restarts import Restarts
from protocl.strategies.drift.compensation import DriftEstimator
from protocl.strategies.exemplar_free.base import ExemplarFreePlugin
from protocl.strategies.plugin.model_output import ScoresCrossEntropy


class ExemplarFree(SupervisedTemplate):
    """A strategy whose loss and answer are those of ``method``.

    Args:
        model: any model whose classification layer can be found; the layer itself is not used.
        optimizer: for the model. Each experience starts with its moments forgotten.
        method: the plugin that makes the strategy what it is.
        later_lr_factor: later experiences begin at this multiple of the first one's rate.
        schedule: epochs of the first experience and decay of the learning rate.
        plugins: further Avalanche plugins.
        **settings: those of Avalanche's ``SupervisedTemplate``.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: optim.Optimizer,
        method: ExemplarFreePlugin,
        later_lr_factor: float = 1.0,
        schedule: EpochSchedule | None = None,
        plugins: Sequence[Any] | None = None,
        **settings: Any,
    ) -> None:
        self.method = method
        own = [method, Restarts(later_lr_factor)] + ([] if schedule is None else [schedule])
        settings.setdefault("evaluator", default_evaluator)
        settings.setdefault("criterion", ScoresCrossEntropy())
        super().__init__(
            model=model, optimizer=optimizer, plugins=[*own, *(plugins or [])], **settings
        )

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
        drift: how prototypes of old classes are carried over: none, sdc, ldc or adc.
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
            plugins=[InMemory(), *setup.plugins],
            evaluator=setup.evaluator,
        )
