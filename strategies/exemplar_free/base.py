"""What the exemplar-free methods that train the backbone share: NAPA-VQ, PASS and IL2A.

All three see each image in several forms, hold on to the features of the model before the
experience, and stand in for old classes by features made from their prototypes. A method adds its
loss, its own parameters and its answer.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn, optim

from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level
from protocl.strategies.drift.compensation import DriftEstimator
from protocl.strategies.exemplar_free.rotations import rotate
from protocl.strategies.plugin.extraction import features_of
from protocl.strategies.plugin.task_classes import repeated, tasks_of
from protocl.strategies.training.base import FeatureLossPlugin
from protocl.strategies.training.row_index import ClassRows
from protocl.strategies.training.teacher import Teacher, feature_distillation
from protocl.strategies.training.views import Views


class ExemplarFreePlugin(FeatureLossPlugin):
    """Training with views, feature distillation and replayed prototypes.

    Classes come in any order and number, with any ids. A class that comes back is trained on like
    a new one: its prototypes are computed anew and its own parameters may move again.

    Args:
        parameters: the method's own parameters and buffers, kept between experiences; their
            first dimension grows with the classes.
        views: what the model is shown of a mini-batch.
        distillation_weight: of :func:`.feature_distillation` to the model before the experience.
        num_workers: processes that load data when prototypes are computed.
        drift: how prototypes of old classes are carried over after each experience; the methods
            that use this plugin leave them as they are.
        **settings: those of :class:`.FeatureLossPlugin`.

    Attributes:
        rows: row of each class, in order of arrival.
        old_rows: ``(O,)`` rows of classes that are not in the present experience.
        memory: statistics of the features of each class under the backbone that its experience
            left behind, or None before the first; those of old classes are carried over by
            ``drift``. With ``V`` prototype views the ids are ``V * class + quarter turns``.
        table: ``(V R, D)``, :meth:`prototypes` at the start of an experience with old classes.
    """

    prototype_views: ClassVar[int] = 1
    level: ClassVar[Level] = "mean"
    needs_new_prototypes: ClassVar[bool] = False

    def __init__(
        self,
        parameters: nn.Module,
        *,
        views: Views | None,
        distillation_weight: float,
        num_workers: int = 0,
        drift: DriftEstimator | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(views=views, **settings)
        if distillation_weight < 0:
            raise ValueError(f"distillation_weight={distillation_weight}: expected 0 or more")
        self.parameters = parameters
        self.distillation_weight = distillation_weight
        self.num_workers = num_workers
        self.drift = DriftEstimator() if drift is None else drift
        self.rows = ClassRows()
        self.old_rows = torch.zeros(0, dtype=torch.int64)
        self.memory: PrototypeMemory | None = None
        self.table: Tensor | None = None
        self._teacher: Teacher | None = None
        self._optimizer: optim.Optimizer | None = None

    # -- for methods ------------------------------------------------------------------------

    @abstractmethod
    def grow(self, feature_dim: int) -> None:
        """Make room in :attr:`parameters` for the rows of new classes, ``feature_dim`` wide."""

    @abstractmethod
    def make_optimizer(self, strategy: Any) -> optim.Optimizer:
        """The optimizer of the method's own parameters for one experience."""

    @abstractmethod
    def class_loss(self, features: Tensor, rows: Tensor) -> Tensor:
        """Scalar loss of a mini-batch, distillation apart.

        Args:
            features: ``(V B, D)`` of all views, with gradient; all first views first.
            rows: ``(B,)`` rows of the samples' classes.
        """

    @abstractmethod
    def answer(self, features: Tensor) -> Tensor:
        """Logits ``(N, R)`` of features ``(N, D)``, one column for each class row."""

    # -- training ---------------------------------------------------------------------------

    def begin_experience(self, strategy: Any, class_ids: Tensor) -> None:
        earlier = self.rows.to(strategy.device).ids
        self.old_rows = (~torch.isin(earlier, class_ids)).nonzero().flatten()
        new = self.rows.add(class_ids)
        self._teacher = Teacher(strategy.model, self.layer) if len(self.old_rows) else None
        if self.needs_new_prototypes and len(self.old_rows) and len(new):
            self._compute_prototypes(strategy, new)
        self._optimizer = None

    def feature_loss(
        self, strategy: Any, features: Tensor, labels: Tensor, inputs: Tensor
    ) -> Tensor:
        if self._optimizer is None:
            # Only now is the width of the features known.
            self.grow(features.shape[1])
            self.table = self.prototypes() if len(self.old_rows) else None
            self.parameters.to(features.device)
            self._optimizer = self.make_optimizer(strategy)
        loss = self.class_loss(features, self.rows(labels))
        if self._teacher is None or not self.distillation_weight:
            return loss
        tasks = repeated(tasks_of(strategy), len(inputs))
        old = self._teacher.features(inputs, tasks)
        return loss + self.distillation_weight * feature_distillation(features, old)

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if self._teacher is not None and self.memory is not None:
            self.memory = self.drift.carried(strategy, self.memory, self._teacher, self.layer)
        self._compute_prototypes(strategy)
        if self._optimizer is None and self.memory is not None:
            self.grow(self.memory.feature_dim)  # there was no step, as with zero epochs
        self._teacher = self._optimizer = self.table = None

    def _compute_prototypes(self, strategy: Any, only: Tensor | None = None) -> None:
        """Replace the statistics of the experience's classes, or of ``only`` some of them."""
        fresh: PrototypeMemory | None = None
        for turn in range(self.prototype_views):
            for features, ids in self._features_of_experience(strategy, turn):
                mine = slice(None) if only is None else torch.isin(ids, only)
                fresh = fresh or PrototypeMemory(features.shape[1], self.level).to(features.device)
                fresh.update(features[mine], self.prototype_views * ids[mine] + turn)
        if fresh is None:
            return
        self.memory = (self.memory or fresh.empty_like()).to(fresh.device)
        known = fresh.classes[torch.isin(fresh.classes, self.memory.classes)]
        self.memory.forget(known).merge(fresh)

    def _features_of_experience(self, strategy: Any, turn: int) -> Any:
        """Features ``(B, D)`` and class ids ``(B,)`` of its images after ``turn`` quarter turns."""
        batches = features_of(
            strategy,
            strategy.experience.dataset,
            self.layer,
            self.num_workers,
            (lambda x: rotate(x, turn)) if turn else None,
        )
        for _, features, labels, tasks in batches:
            yield features, self.tasks.ids(labels, tasks)

    def prototypes(self) -> Tensor:
        """``(V R, D)`` float32 means; row ``V r + k`` is view ``k`` of class row ``r``.

        They are 0 where nothing has been computed yet.
        """
        assert self.memory is not None
        turns = torch.arange(self.prototype_views, device=self.rows.ids.device)
        ids = (self.prototype_views * self.rows.ids[:, None] + turns).flatten()
        known = self.memory.classes.to(ids.device)
        table = torch.zeros(len(ids), self.memory.width, device=ids.device)
        present = torch.isin(ids, known)
        places = torch.searchsorted(known, ids[present])
        table[present] = self.memory.means.to(table)[places]
        return table

    # -- answering --------------------------------------------------------------------------

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        super().before_eval(strategy, **kwargs)
        self.parameters.to(strategy.device)
        self.rows.to(strategy.device)

    @torch.no_grad()
    def class_logits(self, features: Tensor) -> tuple[Tensor, Tensor] | None:
        if not len(self.rows):
            return None
        return self.answer(features), self.rows.ids

    # -- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What is kept between experiences: tensors and numbers only."""
        memory = self.memory
        return {
            "rows": self.rows.state_dict(),
            "parameters": self.parameters.state_dict(),
            "feature_dim": None if memory is None else memory.feature_dim,
            "memory": None if memory is None else memory.state_dict(),
            "tasks": {task: sorted(classes) for task, classes in self.tasks.seen.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave of a plugin with the same arguments."""
        self.tasks.seen = {task: set(classes) for task, classes in state["tasks"].items()}
        self.rows.load_state_dict(state["rows"])
        self.parameters.load_state_dict(state["parameters"])
        self.memory = None
        if state["memory"] is not None:
            self.memory = PrototypeMemory(state["feature_dim"], self.level)
            self.memory.load_state_dict(state["memory"])


class GrowingParameters(nn.Module):
    """Parameters and buffers whose first dimensions grow; saved states decide their shapes."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, parameter in self.named_parameters(recurse=False):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, nn.Parameter(parameter.detach().new_empty(saved.shape)))
        for name, buffer in self.named_buffers(recurse=False):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, buffer.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
