"""Carry the prototypes of old classes along with a backbone that trains.

``plugins=[DriftCompensation(prototypes, "ldc"), prototypes]``, where ``prototypes`` is the
:class:`.PrototypePlugin` that answers, corrects its memory after each experience, before the
statistics of the new classes are added. It works with any strategy that moves the backbone (Naive,
LwF, ...), at one copy of the model during an experience and one more pass over it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from protocl.config.validation import (
    AT_LEAST_1,
    NOT_NEGATIVE,
    POSITIVE,
    ranged,
    require_declared,
)
from protocl.data.augmentation.input_range import input_range
from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level
from protocl.memory.from_statistics import require_plain
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
from protocl.strategies.drift.feature_matrix import (
    classifier_rows,
    feature_matrix,
    metric_displacements,
    metric_squares,
)
from protocl.strategies.drift.row_space import mapped_in_row_spaces, require_row_spaces
from protocl.strategies.plugin.classifier_layer import FeatureFinder
from protocl.strategies.plugin.extraction import features_of
from protocl.strategies.plugin.feature_hook import undisturbed
from protocl.strategies.plugin.prototype_plugin import PrototypePlugin
from protocl.strategies.training.distances import squared_distances
from protocl.strategies.training.teacher import Teacher, read_features

_CLASSES_AT_ONCE = 4
"""Old classes whose samples ADC perturbs in one batch; bounds its memory."""


_METHODS_OF = {
    "sigma": ("sdc",), "metric": ("sdc",), "ridge": ("ldc", "dpcr"),
    "neighbours": ("adc",), "step": ("adc",), "steps": ("adc",),
}  # fmt: skip


_Pair = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class DriftEstimator:
    """How old classes are carried over to a new backbone.

    Attributes:
        method: ``"none"``, ``"sdc"``, ``"ldc"``, ``"dpcr"`` or ``"adc"``; see :mod:`.estimators`.
            ``dpcr`` needs statistics of level ``full``.
        sigma: of ``sdc``, in units of the features; with ``metric="efm"`` as a share of the span of
            squared distances, for which the authors take 0.2.
        ridge: of ``ldc`` and ``dpcr``, relative to the mean square of a feature.
        metric: of ``sdc``: ``"euclidean"``, or ``"efm"`` for the empirical feature matrix of the
            classifier that the backbone was trained with, on the current samples (EFC takes those
            of the experience before).
        neighbours: of ``adc``, samples that are perturbed towards each class mean.
        step, steps: of ``adc``, see :func:`.perturbed`.

    Example:
        >>> DriftEstimator("sdc", sigma=0.5).old_prototypes
        'compensated (sdc)'
    """

    method: DriftMethod = "none"
    sigma: float = ranged(0.3, POSITIVE)
    ridge: float = ranged(1e-6, NOT_NEGATIVE)
    metric: Literal["euclidean", "efm"] = "euclidean"
    neighbours: int = ranged(100, AT_LEAST_1)
    step: float = ranged(25.0, POSITIVE)
    steps: int = ranged(3, AT_LEAST_1)

    def __post_init__(self) -> None:
        require_declared(self)

    @property
    def unused(self) -> dict[str, str]:
        """Settings that are for another method, with the reason."""
        others = {name: of for name, of in _METHODS_OF.items() if self.method not in of}
        return {
            f"drift.{name}": f"it is for drift={' or '.join(of)}" for name, of in others.items()
        }

    @property
    def old_prototypes(self) -> str:
        """What becomes of old prototypes: see :class:`protocl.config.StrategyConfig`."""
        return "left" if self.method == "none" else f"compensated ({self.method})"

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
        if self.method == "sdc":
            return self._displaced(memory, _pairs(strategy, teacher, layer), teacher)
        return self._mapped(memory, _pairs(strategy, teacher, layer))

    def require(self, level: Level | None, *, classifier: bool = True) -> None:
        """Refuse what cannot be carried over so.

        Args:
            level: of the statistics.
            classifier: the model is trained by its classification layer.

        Raises:
            ValueError: the method needs more.
        """
        if self.method == "dpcr":
            require_row_spaces(level)
        if self.method == "sdc" and self.metric == "efm" and not classifier:
            raise ValueError(
                "drift.metric='efm' reads the model's classification layer, which this method does "
                "not train: take metric='euclidean'"
            )

    def _mapped(self, memory: PrototypeMemory, pairs: Iterator[_Pair]) -> PrototypeMemory:
        moments: PairMoments | None = None
        for _, before, after in pairs:
            part = pair_moments(before, after, bias=self.method == "ldc")
            moments = part if moments is None else moments.plus(part)
        if moments is None:
            return memory
        change = moments.solve(self.ridge)
        return (mapped if self.method == "ldc" else mapped_in_row_spaces)(memory, change)

    def _displaced(
        self, memory: PrototypeMemory, pairs: Iterator[_Pair], teacher: Teacher
    ) -> PrototypeMemory:
        means, weighted = memory.means, None
        if self.metric == "efm":
            return self._displaced_in_metric(memory, list(pairs), teacher)
        for _, before, after in pairs:
            term: WeightedDisplacements = weighted_displacements(means, before, after, self.sigma)
            weighted = term if weighted is None else weighted.plus(term)
        return memory if weighted is None else displaced(memory, weighted.mean)

    def _displaced_in_metric(
        self, memory: PrototypeMemory, pairs: list[_Pair], teacher: Teacher
    ) -> PrototypeMemory:
        if not pairs:
            return memory
        before, after = (torch.cat([pair[i] for pair in pairs]) for i in (1, 2))
        rows = classifier_rows(teacher.classifier(), memory.classes)
        squares = metric_squares(before, memory.means, feature_matrix(before, *rows).mean)
        limits = float(squares.min()), float(squares.max())
        moved = after.double() - before.double()
        weighted = metric_displacements(squares, moved, limits, self.sigma)
        return displaced(memory, weighted.mean)

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


def _require_features(prototypes: PrototypePlugin, method: str) -> None:
    """Refuse, before anything is trained, sums that cannot be carried over."""
    try:
        require_plain(prototypes.head.new_memory(2, exact=prototypes.exact))
    except ValueError as error:
        raise ValueError(
            f"drift='{method}' carries features over as they are, which "
            f"{type(prototypes.head).__name__} does not sum: take another head ({error})"
        ) from error


def _pairs(strategy: Any, teacher: Teacher, layer: str | None) -> Iterator[_Pair]:
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
        method: ``"none"``, ``"sdc"``, ``"ldc"``, ``"dpcr"`` or ``"adc"``, or an estimator.
        **settings: the others of :class:`DriftEstimator`, with the name of a method.

    Example:
        >>> from avalanche.training import Naive
        >>> from protocl.checks import toy
        >>> def accuracy(method):
        ...     model, plugin = toy.model(), PrototypePlugin()
        ...     sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     plugins = [DriftCompensation(plugin, method), plugin]
        ...     settings = dict(train_epochs=4, train_mb_size=16, plugins=plugins)
        ...     return toy.learn(Naive(model=model, optimizer=sgd, **settings))[-1]
        >>> accuracy("none") < accuracy("ldc")  # on all classes, at the end
        True
    """

    def __init__(
        self, prototypes: PrototypePlugin, method: DriftMethod | DriftEstimator, **settings: Any
    ) -> None:
        super().__init__()
        if prototypes.collect != "extra_pass":
            raise ValueError(
                f"collect='{prototypes.collect}': drift compensation needs a plugin that adds the "
                "new classes after training; use PrototypePlugin(collect='extra_pass')"
            )
        self.prototypes = prototypes
        if not isinstance(method, DriftEstimator):
            method = DriftEstimator(method, **settings)
        method.require(prototypes.level or prototypes.head.required_level)
        if method.method != "none":
            _require_features(prototypes, method.method)
        self.estimator = method
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
