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
from protocl.strategies.plugin.task_classes import tasks_of
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
        self._blocks: dict[int, tuple[int, int]] = {}  # by experience: categories before, and in it

    # -- for subclasses ---------------------------------------------------------------------

    @abstractmethod
    def assigned(self, features: Tensor) -> Tensor:
        """Categories ``(N,)`` of features ``(N, D)``, where :attr:`sorts`."""

    @property
    @abstractmethod
    def sorts(self) -> bool:
        """Whether enough was learned for :meth:`assigned`."""

    def expected(self, t: int) -> int:
        """How many categories nobody names are looked for in experience ``t``."""
        unlabelled = self.beside.unlabelled
        if unlabelled is None or not len(unlabelled.rows(t)):
            return 0
        return unlabelled.new_categories[t] if self.new_categories is None else self.new_categories

    def numbers(self, count: int) -> Tensor:
        """``(count,)`` of the categories that nobody names in the present experience.

        An experience that comes again has its numbers again, and further ones if it needs more.
        """
        first, room = self._blocks.get(self._experience, (self._given, 0))
        if count > room:
            first = first if first + room == self._given else self._given
            self._given = first + count
            self._blocks[self._experience] = (first, count)
        return FIRST_CATEGORY + torch.arange(first, first + count)

    def block(self) -> Tensor:
        """All numbers that categories of the present experience were given."""
        first, room = self._blocks.get(self._experience, (0, 0))
        return FIRST_CATEGORY + torch.arange(first, first + room)

    # -- wiring -----------------------------------------------------------------------------

    def begin_experience(self, strategy: Any, class_ids: Tensor) -> None:
        super().begin_experience(strategy, class_ids)
        self._experience = int(strategy.experience.current_experience)
        self.beside.begin(self._experience)

    def feature_loss(
        self, strategy: Any, features: Tensor, labels: Tensor, inputs: Tensor
    ) -> Tensor:
        samples = len(labels) + len(self.beside.drawn)
        if len(features) != 2 * samples:
            raise ValueError(
                f"{type(self).__name__} compares two views of each sample, and got "
                f"{len(features)} for {samples}: give views that make two"
            )
        return super().feature_loss(strategy, features, labels, inputs)

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        super().before_forward(strategy, **kwargs)
        tasks = tasks_of(strategy)
        if tasks is not None:  # what has no label is of the tasks of what has one, in turn
            rows = len(strategy.mbatch[0])
            strategy.mbatch[-1] = tasks.repeat(-(-rows // len(tasks)))[:rows]

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        fresh = self._discover(strategy)
        if fresh is None:
            return
        kept = self.discovered or fresh.empty_like()
        again = kept.classes[torch.isin(kept.classes, self.block().to(kept.device))]
        self.discovered = kept.to(fresh.device).forget(again).merge(fresh)

    @torch.no_grad()
    def _discover(self, strategy: Any) -> PrototypeMemory | None:
        """Statistics of categories in the experience; None where nothing is sorted."""
        memory: PrototypeMemory | None = None
        for features in self.features_at(
            strategy, self._rows() if self.sorts else self._rows()[:0]
        ):
            memory = memory or PrototypeMemory(features.shape[1]).to(features.device)
            found = self.assigned(features)
            unnamed = found >= FIRST_CATEGORY
            memory.update(features[unnamed], found[unnamed])
        return memory

    def _rows(self) -> Tensor:
        """Where the unlabelled samples of the present experience are."""
        unlabelled = self.beside.unlabelled
        nothing = torch.zeros(0, dtype=torch.int64)
        return nothing if unlabelled is None else unlabelled.rows(self._experience)

    def _total(self) -> int:
        return 0 if self.beside.unlabelled is None else len(self.beside.unlabelled.x)

    def features_at(self, strategy: Any, rows: Tensor) -> Iterator[Tensor]:
        """Features ``(B, D)``, batch by batch, of the unlabelled samples at ``rows`` ``(M,)``."""
        if self.beside.unlabelled is None or not len(rows):
            return
        x = self.beside.unlabelled.x[rows.to(self.beside.unlabelled.x.device)]
        dataset: Any = as_classification_dataset(TensorData(x, torch.zeros(len(x))))
        for batch in features_of(strategy, dataset, self.layer, self.num_workers):
            yield batch[1]

    @torch.no_grad()
    def categories(self, strategy: Any, rows: Tensor) -> Tensor | None:
        """Categories ``(M,)`` of the unlabelled samples at ``rows`` ``(M,)``, as the model is now.

        None where nothing has been trained yet.
        """
        if not self.sorts:
            return None
        found = [self.assigned(features) for features in self.features_at(strategy, rows)]
        return torch.cat(found) if found else rows[:0]

    # -- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "discovered": memory_state(self.discovered),
            "categories": dict(self._blocks),
            "given": self._given,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.discovered = memory_from(
            state["discovered"], lambda features: PrototypeMemory(features.shape[1])
        )
        self._blocks, self._given = dict(state["categories"]), state["given"]
