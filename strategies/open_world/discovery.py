"""What methods share that learn from named classes and from samples without labels beside them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from avalanche.benchmarks.utils import as_classification_dataset
from torch import Tensor

from protocl.data import TensorData, Unlabelled
from protocl.memory import PrototypeMemory
from protocl.strategies.open_world.beside import Beside
from protocl.strategies.open_world.representation import RepresentationPlugin
from protocl.strategies.plugin.class_statistics import memory_from, memory_state
from protocl.strategies.plugin.extraction import features_of
from protocl.strategies.plugin.task_classes import repeated, tasks_of
from protocl.strategies.training.views import Views, named_views

FIRST_CATEGORY = 2**62
"""Number of the first category that nobody has named; ids of named classes are below."""


class DiscoveryPlugin(RepresentationPlugin):
    """Trains on both kinds of samples, and finds categories among those without labels.

    A category is a number: the id of a named class, or one from :data:`FIRST_CATEGORY` on, for one
    that nobody has named. These mean nothing outside of this plugin: before statistics of them are
    merged with those of others they have to be given ids that nobody else gives.

    Args:
        projector: as in :class:`.RepresentationPlugin`.
        unlabelled: samples without labels, by the number of the experience that they come with;
            None for none, so that named classes alone are learned.
        ratio: unlabelled samples in a mini-batch for each labelled one.
        new_categories: in each experience, beside its named classes; None for the true number,
            which a benchmark knows. Experiences without unlabelled samples have none.
        views: as in :class:`.RepresentationPlugin`.
        **settings: those of :class:`.FeatureLossPlugin`.

    Attributes:
        discovered: statistics, of level ``mean``, of the unlabelled samples of each category that
            nobody has named, under the backbone that their experience left behind; None without
            any. They are no part of those of named classes, whose scatter they would widen.
    """

    def __init__(
        self,
        projector: dict[str, Any],
        *,
        unlabelled: Unlabelled | None = None,
        ratio: float = 1.0,
        new_categories: int | None = None,
        views: Views | None = None,
        **settings: Any,
    ) -> None:
        if new_categories is not None and new_categories < 0:
            raise ValueError(f"new_categories={new_categories}: expected 0 or more")
        self.beside = Beside(named_views("auto") if views is None else views, unlabelled, ratio)
        super().__init__(projector, views=self.beside, **settings)
        self.new_categories = new_categories
        self.discovered: PrototypeMemory | None = None
        self._experience = self._given = 0
        self._first: dict[int, int] = {}  # categories given before an experience

    # -- for subclasses ---------------------------------------------------------------------

    @abstractmethod
    def assigned(self, features: Tensor) -> Tensor:
        """Categories ``(N,)`` of features ``(N, D)``; after training began."""

    def expected(self, t: int) -> int:
        """How many categories nobody names are looked for in experience ``t``."""
        unlabelled = self.beside.unlabelled
        if unlabelled is None or not len(unlabelled.rows(t)):
            return 0
        return unlabelled.new_categories[t] if self.new_categories is None else self.new_categories

    def numbers(self) -> Tensor:
        """``(K,)`` of the categories that nobody names in the present experience."""
        count = self.expected(self._experience)
        if self._experience not in self._first:
            self._first[self._experience] = self._given
            self._given += count
        first = self._first[self._experience]
        return FIRST_CATEGORY + torch.arange(first, first + count)

    # -- wiring -----------------------------------------------------------------------------

    def begin_experience(self, strategy: Any, class_ids: Tensor) -> None:
        super().begin_experience(strategy, class_ids)
        self._experience = int(strategy.experience.current_experience)
        self.beside.begin(self._experience)

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        super().before_forward(strategy, **kwargs)
        tasks = tasks_of(strategy)
        if tasks is not None:  # what has no label is of the tasks of what has one, in turn
            rows = len(strategy.mbatch[0])
            strategy.mbatch[-1] = repeated(tasks, rows + len(tasks))[:rows]

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        fresh = self._discover(strategy)
        if fresh is None or not len(fresh):
            return
        if self.discovered is None:
            self.discovered = fresh
            return
        again = fresh.classes[torch.isin(fresh.classes, self.discovered.classes)]
        self.discovered.forget(again).merge(fresh)

    @torch.no_grad()
    def _discover(self, strategy: Any) -> PrototypeMemory | None:
        unlabelled, t = self.beside.unlabelled, strategy.experience.current_experience
        if unlabelled is None or self.projector is None:
            return None
        memory: PrototypeMemory | None = None
        for features in self.features_at(strategy, unlabelled.rows(t)):
            memory = memory or PrototypeMemory(features.shape[1]).to(features.device)
            found = self.assigned(features)
            unnamed = found >= FIRST_CATEGORY
            memory.update(features[unnamed], found[unnamed])
        return memory

    def features_at(self, strategy: Any, rows: Tensor) -> Iterator[Tensor]:
        """Features ``(B, D)``, batch by batch, of the unlabelled samples at ``rows`` ``(M,)``."""
        if self.beside.unlabelled is None or not len(rows):
            return
        x = self.beside.unlabelled.x[rows.to(self.beside.unlabelled.x.device)]
        dataset: Any = as_classification_dataset(TensorData(x, torch.zeros(len(x))))
        for batch in features_of(strategy, dataset, self.layer, self.num_workers):
            yield batch[1]

    @torch.no_grad()
    def categories(self, strategy: Any, rows: Tensor) -> Tensor:
        """Categories ``(M,)`` of the unlabelled samples at ``rows`` ``(M,)``, as the model is now.

        Raises:
            RuntimeError: nothing was trained yet.
        """
        if self.projector is None:
            raise RuntimeError(f"{type(self).__name__} has not trained yet: no categories")
        found = [self.assigned(features) for features in self.features_at(strategy, rows)]
        return torch.cat(found) if found else rows[:0]

    # -- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "discovered": memory_state(self.discovered),
            "categories": dict(self._first),
            "given": self._given,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.discovered = memory_from(
            state["discovered"], lambda features: PrototypeMemory(features.shape[1])
        )
        self._first, self._given = dict(state["categories"]), state["given"]
