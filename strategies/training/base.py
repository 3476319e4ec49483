"""What strategies share that train the backbone by a loss on its features.

They run inside any Avalanche strategy: the model's forward pass is the host's, its features are
what enters the classification layer, and the host's loss on the classifier's output is replaced
(or weighted). At evaluation they answer from prototypes. Whatever they change in a mini-batch is
put back before another plugin can see it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level
from protocl.strategies.plugin.class_statistics import class_statistics
from protocl.strategies.plugin.extraction import features_of, labels_of
from protocl.strategies.plugin.feature_hook import refuse_compiled
from protocl.strategies.plugin.feature_reader import FeatureReader
from protocl.strategies.plugin.model_output import scores_of
from protocl.strategies.plugin.task_classes import (
    TaskClasses,
    has_task_labels,
    refuse_empty,
    tasks_of,
)
from protocl.strategies.training.shown_views import ShownViews, refuse_readers
from protocl.strategies.training.views import Views


class FeatureLossPlugin(SupervisedPlugin[Any]):
    """Replaces the loss of its host by one on features, and the answer by one from prototypes.

    Args:
        layer: name of the model's classification layer; found by itself if it has a common name.
        views: makes several inputs of each sample; None for the sample itself.
        host_loss: weight of the host's own loss, which trains the model's classifier.
        mask_tasks, per_task: as in :class:`.PrototypePlugin`.
        num_workers: processes that load data when statistics are computed.
    """

    def __init__(
        self,
        *,
        layer: str | None = None,
        views: Views | None = None,
        host_loss: float = 0.0,
        mask_tasks: bool = True,
        per_task: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if host_loss < 0:
            raise ValueError(f"host_loss={host_loss}: expected a weight of at least 0")
        self.layer = layer
        self.views = views
        self.host_loss = host_loss
        self.tasks = TaskClasses(mask=mask_tasks, per_task=per_task)
        self.num_workers = num_workers
        self._reader = FeatureReader(layer, differentiable=True)
        self._shown = ShownViews(type(self).__name__)
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
        """Statistics of the features of ``dataset``, not an empty one, as the model is now.

        Args:
            strategy: the host.
            dataset: an ``AvalancheDataset`` of classes that were noted.
            level: what is kept.
            num_workers: processes that load data which is not in memory.
        """
        passed = features_of(strategy, dataset, self.layer, num_workers)
        memory = class_statistics(
            (batch[1:] for batch in passed),
            lambda features: PrototypeMemory(features.shape[1], level).to(strategy.device),
            self.tasks.ids,
        )
        assert memory is not None
        return memory

    # -- training ---------------------------------------------------------------------------

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        refuse_compiled(strategy.model)
        if self.views is not None:
            refuse_readers(type(self).__name__, strategy.plugins)

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        refuse_empty(strategy.experience)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        labels, tasks = _labels_of(strategy.experience.dataset)
        ids = torch.unique(self.tasks.note(labels, tasks))
        self.begin_experience(strategy, ids.to(strategy.device))

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        if self.views is not None:
            self._shown.put(strategy, self.views)
        self._reader.open(strategy)

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        self._features = self._reader.read(strategy)
        self._inputs = strategy.mb_x
        point = self._reader.point
        strategy.mb_output = scores_of(strategy.mb_output, None if point is None else point.scores)
        self._shown.take_back(strategy)

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
        self._reader.open(strategy)

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        answer = self.class_logits(self._reader.read(strategy))
        if answer is not None:
            logits, ids = answer
            width, tasks = self._reader.width(strategy), tasks_of(strategy)
            strategy.mb_output = self.tasks.dense(logits, ids, tasks, width, float("-inf"))

    # -- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What is kept between experiences, here what is known of tasks: no pickled code."""
        return {"tasks": self.tasks.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave of a plugin with the same arguments."""
        self.tasks.load_state_dict(state["tasks"])


def _labels_of(dataset: Any) -> tuple[Tensor, Tensor | None]:
    """Labels ``(N,)`` and, where there are any, task labels ``(N,)`` of an Avalanche dataset."""
    labels = labels_of(dataset)
    if not has_task_labels(dataset):
        return labels, None
    return labels, torch.as_tensor(list(dataset.targets_task_labels))
