"""What strategies share that train the backbone by a loss on its features.

They run inside any Avalanche strategy: the model's forward pass is the host's, its features are
what enters the classification layer, and the host's loss on the classifier's output is replaced
(or weighted). At evaluation they answer from prototypes. Whatever they change in a mini-batch is
put back before another plugin can see it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import FeatureDistillationPlugin
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level
from protocl.strategies.plugin.classifier_layer import FeatureFinder
from protocl.strategies.plugin.extraction import features_of, labels_of, least_width, sample_of
from protocl.strategies.plugin.feature_hook import FeatureHook, joined, refuse_compiled
from protocl.strategies.plugin.model_output import scores_of
from protocl.strategies.plugin.task_classes import (
    TaskClasses,
    has_task_labels,
    refuse_empty,
    repeated,
    tasks_of,
)
from protocl.strategies.training.views import Views


class FeatureLossPlugin(SupervisedPlugin[Any]):
    """Replaces the loss of its host by one on features, and the answer by one from prototypes.

    Args:
        layer: name of the model's classification layer; found by itself if it has a common name.
        views: makes several inputs of each sample; None for the sample itself.
        host_loss: weight of the host's own loss, which trains the model's classifier.
        mask_tasks, per_task: as in :class:`.PrototypePlugin`.
    """

    def __init__(
        self,
        *,
        layer: str | None = None,
        views: Views | None = None,
        host_loss: float = 0.0,
        mask_tasks: bool = True,
        per_task: bool = False,
    ) -> None:
        super().__init__()
        if host_loss < 0:
            raise ValueError(f"host_loss={host_loss}: expected a weight of at least 0")
        self.layer = layer
        self.views = views
        self.host_loss = host_loss
        self.tasks = TaskClasses(mask=mask_tasks, per_task=per_task)
        self._find = FeatureFinder(layer)
        # Two, because an evaluation can come in the middle of an epoch.
        self._training_hook = FeatureHook(differentiable=True)
        self._answering_hook = FeatureHook()
        self._single: tuple[Tensor, Tensor | None] | None = None
        self._features: Tensor | None = None
        self._inputs: Tensor | None = None

    # -- for subclasses ---------------------------------------------------------------------

    @abstractmethod
    def begin_experience(self, strategy: Any, class_ids: Tensor) -> None:
        """Prepare for the classes ``(K,)`` of an experience; ids as in :class:`TaskClasses`."""

    @abstractmethod
    def feature_loss(
        self, strategy: Any, features: Tensor, labels: Tensor, inputs: Tensor
    ) -> Tensor:
        """The loss of a mini-batch.

        Args:
            strategy: the host.
            features: ``(V B, D)``, all first views first.
            labels: ``(B,)``, ids as in :class:`TaskClasses`.
            inputs: ``(V B, ...)``, what the model was given.
        """

    @abstractmethod
    def class_logits(self, features: Tensor) -> tuple[Tensor, Tensor] | None:
        """Logits ``(N, C)`` and the ids ``(C,)`` of their columns; None before the first step."""

    def statistics(
        self, strategy: Any, dataset: Any, level: Level = "mean", num_workers: int = 0
    ) -> PrototypeMemory:
        """Of the features of ``dataset``, which has samples, as the model is now.

        Args:
            strategy: the host.
            dataset: an ``AvalancheDataset`` of classes that were noted.
            level: what is kept.
            num_workers: processes that load data which is not in memory.
        """
        memory: PrototypeMemory | None = None
        for _, features, labels, tasks in features_of(strategy, dataset, self.layer, num_workers):
            memory = memory or PrototypeMemory(features.shape[1], level).to(strategy.device)
            memory.update(features, self.tasks.ids(labels, tasks))
        assert memory is not None
        return memory

    # -- training ---------------------------------------------------------------------------

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        refuse_compiled(strategy.model)
        if self.views is not None:
            _refuse_readers(self, strategy.plugins)

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        refuse_empty(strategy.experience)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        labels, tasks = _labels_of(strategy.experience.dataset)
        ids = torch.unique(self.tasks.note(labels, tasks))
        self.begin_experience(strategy, ids.to(strategy.device))

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        if self.views is not None:
            self._make_views(strategy, self.views)
        point = self._find(strategy.model, sample_of(strategy))
        self._training_hook.open_at(strategy.model, point)

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        seen = self._training_hook.close(strategy.mb_output)
        self._features = joined(seen, tasks_of(strategy))
        self._inputs = strategy.mb_x
        point = self._find.point
        strategy.mb_output = scores_of(strategy.mb_output, None if point is None else point.scores)
        if self._single is not None:
            self._undo_views(strategy, *self._single)
            self._single = None

    def _make_views(self, strategy: Any, views: Views) -> None:
        """Put all views in the place of the inputs, and keep what was there."""
        batch, tasks = strategy.mbatch, tasks_of(strategy)
        if isinstance(batch, Mapping):
            raise TypeError(
                f"{type(self).__name__} makes views of each input, which a mini-batch that is a "
                "dictionary does not allow: let the data set give (inputs, labels), or no views"
            )
        self._single = (batch[0], tasks)
        batch[0] = views(batch[0])
        if tasks is not None:
            batch[-1] = repeated(tasks, len(batch[0]))

    def _undo_views(self, strategy: Any, inputs: Tensor, tasks: Tensor | None) -> None:
        batch = strategy.mbatch
        if len(inputs) != len(batch[1]):
            raise RuntimeError(
                f"{type(strategy).__name__} added samples to a mini-batch whose views were made "
                "already: use a strategy that adds them when the batch is loaded, such as Replay"
            )
        batch[0] = inputs
        if tasks is not None:
            batch[-1] = tasks
        strategy.mb_output = strategy.mb_output[: len(inputs)]

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        assert self._features is not None
        assert self._inputs is not None
        labels = self.tasks.ids(strategy.mb_y, tasks_of(strategy))
        own = self.feature_loss(strategy, self._features, labels, self._inputs)
        strategy.loss = self.host_loss * strategy.loss + own if self.host_loss else own

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self._features = self._inputs = None

    # -- answering --------------------------------------------------------------------------

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        refuse_compiled(strategy.model)

    def before_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        point = self._find(strategy.model, sample_of(strategy))
        self._answering_hook.open_at(strategy.model, point)

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        tasks = tasks_of(strategy)
        seen = self._answering_hook.close(strategy.mb_output)
        answer = self.class_logits(joined(seen, tasks))
        if answer is None:
            return
        width = least_width(strategy, self._find.point)
        logits, ids = answer
        strategy.mb_output = self.tasks.dense(logits, ids, tasks, width, float("-inf"))


def _refuse_readers(own: FeatureLossPlugin, plugins: Iterable[Any]) -> None:
    """Plugins that read features which the model keeps in itself would read those of all views.

    Raises:
        ValueError: there is one.
    """
    for plugin in plugins:
        if isinstance(plugin, FeatureDistillationPlugin):
            raise ValueError(
                f"{type(own).__name__} gives the model several views of each sample, so "
                f"{type(plugin).__name__}, which reads model.features, would compare the features "
                "of all views with those of the samples: leave that plugin out, or use a method "
                "without views, such as ProtoCL"
            )


def _labels_of(dataset: Any) -> tuple[Tensor, Tensor | None]:
    """Labels ``(N,)`` and, where there are any, task labels ``(N,)`` of an Avalanche dataset."""
    labels = labels_of(dataset)
    if not has_task_labels(dataset):
        return labels, None
    return labels, torch.as_tensor(list(dataset.targets_task_labels))
