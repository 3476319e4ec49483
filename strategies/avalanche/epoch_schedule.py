"""Epochs and learning rates that differ between experiences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from protocl.config import StrategyConfig
from protocl.config.sections import default_of
from protocl.config.validation import AT_LEAST_0, ranged


def milestone_factor(epoch: int, milestones: Sequence[int], factor: float = 0.1) -> float:
    """``factor`` to the power of the milestones below ``epoch`` (from 0, in its experience).

    >>> [milestone_factor(epoch, (120, 160)) for epoch in (120, 121)]
    [1.0, 0.1]
    """
    decay: float = factor ** sum(epoch > milestone for milestone in milestones)
    return decay


def cosine_factor(epoch: int, epochs: int) -> float:
    """Half a cosine from 1, at epoch 0, to 0 after the last of ``epochs``.

    >>> [round(cosine_factor(epoch, 4), 3) for epoch in range(4)]
    [1.0, 0.854, 0.5, 0.146]

    Source: Loshchilov & Hutter, SGDR, 2017, equation 5, without restarts.
    """
    return (1 + math.cos(math.pi * epoch / epochs)) / 2


def warmup_factor(epoch: int, warmup: int) -> float:
    """A line that reaches 1 in the first epoch after ``warmup`` ones.

    >>> [warmup_factor(epoch, 3) for epoch in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, (epoch + 1) / (warmup + 1))


class EpochSchedule:
    """Give the first experience its own number of epochs, and let learning rates fall.

    An Avalanche plugin, which needs no base class of Avalanche's. Rates return to their start with
    each experience. Every parameter group keeps its own.

    Args:
        first_experience_epochs: epochs of the first experience; None for those of the strategy.
        milestones: epochs of an experience after which the learning rates are multiplied.
        factor: by this.
        cosine: let them also fall to zero over each experience, by :func:`cosine_factor`.
        warmup: epochs of each experience over which they first rise, by :func:`warmup_factor`.
    """

    def __init__(
        self,
        first_experience_epochs: int | None = None,
        milestones: Sequence[int] = (),
        factor: float = 0.1,
        cosine: bool = False,
        warmup: int = 0,
    ) -> None:
        if first_experience_epochs is not None and first_experience_epochs < 0:
            raise ValueError(f"first_experience_epochs={first_experience_epochs}: expected >= 0")
        self.first_experience_epochs = first_experience_epochs
        self.milestones = tuple(milestones)
        self.factor = factor
        self.cosine = cosine
        self.warmup = warmup
        self._decay = 1.0
        self._usual_epochs: int | None = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if self.first_experience_epochs is None:
            return
        if self._usual_epochs is None:
            self._usual_epochs = strategy.train_epochs
            strategy.train_epochs = self.first_experience_epochs
        else:
            strategy.train_epochs = self._usual_epochs

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        epoch = strategy.clock.train_exp_epochs
        decay = milestone_factor(epoch, self.milestones, self.factor)
        if self.cosine:
            decay *= cosine_factor(epoch, strategy.train_epochs)
        if self.warmup:
            decay *= warmup_factor(epoch, self.warmup)
        self._scale(strategy, decay)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._scale(strategy, 1.0)

    def _scale(self, strategy: Any, decay: float) -> None:
        if decay == self._decay:
            return
        for group in strategy.optimizer.param_groups:
            group["lr"] *= decay / self._decay
        self._decay = decay


@dataclass
class ScheduledConfig(StrategyConfig):
    """Settings of strategies that train in every experience.

    Attributes:
        first_experience_epochs: epochs of the first experience; null for ``train_epochs``.
        milestones: epochs of an experience (from 0) after which ``lr`` falls to a tenth.
    """

    first_experience_epochs: int | None = ranged(
        default_of(EpochSchedule, "first_experience_epochs"), AT_LEAST_0
    )
    milestones: tuple[int, ...] = default_of(EpochSchedule, "milestones")

    def schedule(self) -> EpochSchedule:
        """The plugin for epochs and learning rates that the settings ask for."""
        return EpochSchedule(self.first_experience_epochs, self.milestones)
