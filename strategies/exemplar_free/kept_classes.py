"""What NAPA-VQ, PASS and IL2A keep of classes whose samples are gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level
from protocl.strategies.drift.compensation import DriftEstimator
from protocl.strategies.exemplar_free.rotations import rotate
from protocl.strategies.plugin.class_statistics import class_statistics, memory_from, memory_state
from protocl.strategies.plugin.extraction import features_of
from protocl.strategies.plugin.feature_buffer import FeatureChunk
from protocl.strategies.plugin.task_classes import repeated, tasks_of
from protocl.strategies.training.base import FeatureLossPlugin
from protocl.strategies.training.row_index import ClassRows
from protocl.strategies.training.teacher import Teacher, feature_distillation


class KeptClasses:
    """Row, prototypes and trained parameters of each class, and the teacher of an experience.

    Classes come in any order and number, with any ids. A class that comes back is learned like a
    new one: its prototypes are computed anew and its own parameters may move again.

    Args:
        plugin: the method, which says where features are and how tasks tell classes apart.
        parameters: the method's own parameters and buffers; their first dimension grows with the
            classes.
        distillation_weight: of :func:`.feature_distillation` to the model before the experience.
        drift: how prototypes of old classes are carried over after each experience; the methods
            leave them as they are.
        level: of the statistics.
        views: 4 for prototypes of each class in each orientation, 1 for those of images as they
            are.

    Attributes:
        rows: row of each class, in order of arrival.
        memory: statistics of the features of each class under the backbone that its experience
            left behind, or None before the first; those of old classes are carried over by
            ``drift``. With ``V`` views the ids are ``V * class + quarter turns``.
        teacher: the model before the experience; None if there are no old classes.
    """

    def __init__(
        self,
        plugin: FeatureLossPlugin,
        parameters: nn.Module,
        distillation_weight: float,
        drift: DriftEstimator | None,
        *,
        level: Level = "mean",
        views: int = 1,
    ) -> None:
        if distillation_weight < 0:
            raise ValueError(f"distillation_weight={distillation_weight}: expected 0 or more")
        self.layer, self.tasks, self.num_workers = plugin.layer, plugin.tasks, plugin.num_workers
        self.parameters = parameters
        self.distillation_weight = distillation_weight
        self.level: Level = level
        self.views = views
        self.drift = DriftEstimator() if drift is None else drift
        self.drift.require(level, classifier=False)
        self.rows = ClassRows()
        self.memory: PrototypeMemory | None = None
        self.teacher: Teacher | None = None

    def begin(self, strategy: Any, class_ids: Tensor) -> Tensor:
        """Start an experience with the classes ``(K,)``; rows ``(O,)`` of those not in it."""
        earlier = self.rows.to(strategy.device).ids
        old = (~torch.isin(earlier, class_ids)).nonzero().flatten()
        self.rows.add(class_ids)
        self.teacher = Teacher(strategy.model, self.layer) if len(old) else None
        return old

    def distillation(self, strategy: Any, features: Tensor, inputs: Tensor) -> Tensor | float:
        """Weighted distance of features ``(V B, D)`` to the teacher's; 0 if there is none."""
        if self.teacher is None or not self.distillation_weight:
            return 0.0
        tasks = repeated(tasks_of(strategy), len(inputs))
        held = feature_distillation(features, self.teacher.features(inputs, tasks))
        return self.distillation_weight * held

    def end(self, strategy: Any) -> None:
        """Carry over the prototypes of old classes, and compute those of the experience."""
        if self.teacher is not None and self.memory is not None:
            self.memory = self.drift.carried(strategy, self.memory, self.teacher, self.layer)
        self.teacher = None
        self.compute(strategy)

    def compute(self, strategy: Any, only: Tensor | None = None) -> None:
        """Replace the statistics of the experience's classes, or of ``only`` some of them."""
        chunks = self._chunks(strategy, only)
        fresh = class_statistics(chunks, self._new_memory, lambda ids, _: ids)
        if fresh is None:
            return
        self.memory = (self.memory or fresh.empty_like()).to(fresh.device)
        known = fresh.classes[torch.isin(fresh.classes, self.memory.classes)]
        self.memory.forget(known).merge(fresh)

    def _chunks(self, strategy: Any, only: Tensor | None) -> Iterator[FeatureChunk]:
        dataset = strategy.experience.dataset
        for turn in range(self.views):
            view = partial(rotate, quarter_turns=turn) if turn else None
            passed = features_of(strategy, dataset, self.layer, self.num_workers, view)
            for _, features, labels, tasks in passed:
                ids = self.tasks.ids(labels, tasks)
                mine = slice(None) if only is None else torch.isin(ids, only)
                yield features[mine], self.views * ids[mine] + turn, None

    def _new_memory(self, features: Tensor) -> PrototypeMemory:
        return PrototypeMemory(features.shape[1], self.level).to(features.device)

    def prototypes(self) -> Tensor:
        """``(V R, D)`` float32 means; row ``V r + k`` is view ``k`` of class row ``r``.

        They are 0 where nothing has been computed yet.
        """
        assert self.memory is not None
        turns = torch.arange(self.views, device=self.rows.ids.device)
        ids = (self.views * self.rows.ids[:, None] + turns).flatten()
        known = self.memory.classes.to(ids.device)
        table = torch.zeros(len(ids), self.memory.width, device=ids.device)
        present = torch.isin(ids, known)
        places = torch.searchsorted(known, ids[present])
        table[present] = self.memory.means.to(table)[places]
        return table

    @torch.no_grad()
    def answer(
        self, features: Tensor, logits: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor] | None:
        """``logits`` ``(N, R)`` of features ``(N, D)`` and the classes of their columns ``(R,)``.

        None before the first experience.
        """
        if not len(self.rows):
            return None
        self.parameters.to(features.device)
        return logits(features), self.rows.to(features.device).ids

    def state_dict(self) -> dict[str, Any]:
        """What is kept between experiences: tensors and numbers only."""
        return {
            "rows": self.rows.state_dict(),
            "parameters": self.parameters.state_dict(),
            **memory_state(self.memory),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave."""
        self.rows.load_state_dict(state["rows"])
        self.parameters.load_state_dict(state["parameters"])
        self.memory = memory_from(state, self._new_memory)
