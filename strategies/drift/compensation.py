"""Carry the prototypes of old classes along with a backbone that trains.

``plugins=[DriftCompensation(prototypes, "ldc"), prototypes]``, where ``prototypes`` is the
:class:`.PrototypePlugin` that answers, corrects its memory after each experience, before the
statistics of the new classes are added. It works with any strategy that moves the backbone (Naive,
LwF, ...), at one copy of the model during an experience and one more pass over it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from protocl.data.augmentation.input_range import input_range
from protocl.memory import PrototypeMemory
from protocl.strategies.drift.estimators import (
    DriftMethod,
    PairMoments,
    WeightedDisplacements,
    displaced,
    hit_displacements,
    mapped,
    pair_moments,
    perturbed,
    weighted_displacements,
)
from protocl.strategies.plugin.classifier_layer import FeatureFinder
from protocl.strategies.plugin.extraction import features_of
from protocl.strategies.plugin.feature_hook import undisturbed
from protocl.strategies.plugin.prototype_plugin import PrototypePlugin
from protocl.strategies.training.distances import squared_distances
from protocl.strategies.training.teacher import Teacher, read_features

_CLASSES_AT_ONCE = 4
"""Old classes whose samples ADC perturbs in one batch; bounds its memory."""


def unused_of_drift(method: str) -> dict[str, str]:
    """Settings without effect when prototypes are carried over by ``method``, with the reason."""
    return {} if method == "sdc" else {"drift_sigma": "it is for drift=sdc"}


def carried(method: str) -> str:
    """``StrategyConfig.old_prototypes`` of a strategy with this drift compensation."""
    return "left" if method == "none" else f"compensated ({method})"


@dataclass(frozen=True)
class DriftEstimator:
    """How old classes are carried over to a new backbone.

    Attributes:
        method: ``"none"``, ``"sdc"``, ``"ldc"`` or ``"adc"``; see :mod:`.drift`.
        sigma: of ``sdc``, in units of the features.
        ridge: of ``ldc``, relative to the mean square of a feature.
        neighbours: of ``adc``, samples that are perturbed towards each class mean.
        step, steps: of ``adc``, see :func:`.perturbed`.
    """

    method: DriftMethod = "none"
    sigma: float = 0.3
    ridge: float = 1e-6
    neighbours: int = 100
    step: float = 25.0
    steps: int = 3

    def __post_init__(self) -> None:
        if self.method not in get_args(DriftMethod):
            raise ValueError(f"drift='{self.method}': expected {', '.join(get_args(DriftMethod))}")
        if not self.sigma > 0:
            raise ValueError(f"sigma={self.sigma}: expected a number > 0")
        if self.neighbours < 1:
            raise ValueError(f"neighbours={self.neighbours}: expected at least 1")

    def carried(
        self, strategy: Any, memory: PrototypeMemory, teacher: Teacher, layer: str | None = None
    ) -> PrototypeMemory:
        """The statistics as they would be under the strategy's present model.

        Args:
            strategy: after training on the current experience, whose samples are read.
            memory: statistics under the model before the experience.
            teacher: that model.
            layer: name of the classification layer.
        """
        if self.method == "none" or len(memory) == 0:
            return memory
        if self.method == "adc":
            return displaced(memory, self._adc_displacements(strategy, memory, teacher, layer))
        pairs = _pairs(strategy, teacher, layer)
        if self.method == "ldc":
            moments: PairMoments | None = None
            for _, before, after in pairs:
                part = pair_moments(before, after)
                moments = part if moments is None else moments.plus(part)
            return memory if moments is None else mapped(memory, moments.solve(self.ridge))
        means, weighted = memory.means, None
        for _, before, after in pairs:
            term: WeightedDisplacements = weighted_displacements(means, before, after, self.sigma)
            weighted = term if weighted is None else weighted.plus(term)
        return memory if weighted is None else displaced(memory, weighted.mean)

    def _adc_displacements(
        self, strategy: Any, memory: PrototypeMemory, teacher: Teacher, layer: str | None
    ) -> Tensor:
        """ADC's displacements ``(C, D)``; of unperturbed neighbours where no sample arrives."""
        means = memory.means
        batches = list(_pairs(strategy, teacher, layer))
        if not batches:
            return torch.zeros_like(means)
        before, after = (torch.cat([batch[i] for batch in batches]) for i in (1, 2))
        count = min(self.neighbours, len(before))
        nearest = squared_distances(before, means).topk(count, dim=0, largest=False).indices.T
        displacements = (after - before).double()[nearest].mean(1)
        x = torch.cat([batch[0] for batch in batches])
        limits = input_range(x)
        for row in torch.arange(len(means), device=means.device).split(_CLASSES_AT_ONCE):
            moved = perturbed(
                x[nearest[row]],
                means[row],
                teacher.trainable_features,
                step=self.step,
                steps=self.steps,
                limits=limits,
            )
            flat = moved.flatten(0, 1)
            old_features = teacher.features(flat).unflatten(0, moved.shape[:2])
            with undisturbed(strategy.model):
                new_features = read_features(strategy.model, flat, find=FeatureFinder(layer))
            drift, hits = hit_displacements(
                means, old_features, new_features.unflatten(0, moved.shape[:2]), row
            )
            displacements[row] = torch.where(hits[:, None] > 0, drift, displacements[row])
        return displacements


def _pairs(
    strategy: Any, teacher: Teacher, layer: str | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Inputs ``(B, ...)`` of the experience and their features ``(B, D)`` before and after it."""
    for x, after, _, tasks in features_of(strategy, strategy.experience.dataset, layer):
        yield x, teacher.features(x, tasks), after


class DriftCompensation(SupervisedPlugin[Any]):
    """Keeps the memory of a :class:`.PrototypePlugin` in step with the backbone.

    Statistics under a moved backbone are estimates. A class that comes back is carried over like
    the others before its new samples are added.

    Args:
        prototypes: the plugin whose memory is corrected. It must come later in the list of
            plugins, and take its features in an extra pass.
        method: ``"none"``, ``"sdc"``, ``"ldc"`` or ``"adc"``.
        **settings: the others of :class:`DriftEstimator`.
    """

    def __init__(self, prototypes: PrototypePlugin, method: DriftMethod, **settings: Any) -> None:
        super().__init__()
        if prototypes.collect != "extra_pass":
            raise ValueError(
                f"collect='{prototypes.collect}': drift compensation needs a plugin that adds the "
                "new classes after training; use PrototypePlugin(collect='extra_pass')"
            )
        self.prototypes = prototypes
        self.estimator = DriftEstimator(method, **settings)
        self._teacher: Teacher | None = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        plugins = strategy.plugins
        mine = plugins.index(self)
        if self.prototypes not in plugins[mine:]:
            raise ValueError(
                "DriftCompensation must come before its PrototypePlugin: give "
                "plugins=[DriftCompensation(prototypes, ...), prototypes]"
            )
        self._teacher = None
        if self.estimator.method != "none" and self.prototypes.memory is not None:
            self._teacher = Teacher(strategy.model, self.prototypes.layer)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        memory = self.prototypes.memory
        if self._teacher is not None and memory is not None:
            self.prototypes.memory = self.estimator.carried(
                strategy, memory.to(strategy.device), self._teacher, self.prototypes.layer
            )
        self._teacher = None
