"""Several views in the place of a mini-batch's inputs, for the time of a forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from avalanche.training.plugins import FeatureDistillationPlugin
from torch import Tensor

from protocl.strategies.plugin.task_classes import repeated, tasks_of
from protocl.strategies.training.views import Views


class ShownViews:
    """Puts all views in the place of the inputs, and takes them back.

    Args:
        owner: class of the plugin, for messages.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._single: tuple[Tensor, Tensor | None] | None = None

    def put(self, strategy: Any, views: Views) -> None:
        """Show the model of ``strategy`` all ``views`` of its mini-batch.

        Raises:
            TypeError: the mini-batch is a dictionary.
        """
        batch, tasks = strategy.mbatch, tasks_of(strategy)
        if isinstance(batch, Mapping):
            raise TypeError(
                f"{self.owner} makes views of each input, which a mini-batch that is a "
                "dictionary does not allow: let the data set give (inputs, labels), or no views"
            )
        self._single = (batch[0], tasks)
        batch[0] = views(batch[0])
        if tasks is not None:
            batch[-1] = repeated(tasks, len(batch[0]))

    def take_back(self, strategy: Any) -> None:
        """Put inputs, task labels and outputs of the first view where all views are, if any.

        Raises:
            RuntimeError: the strategy added samples in between.
        """
        if self._single is None:
            return
        (inputs, tasks), self._single = self._single, None
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


def refuse_readers(owner: str, plugins: Iterable[Any]) -> None:
    """Refuse plugins that read features which the model keeps: those of all views at once.

    Raises:
        ValueError: there is one.
    """
    for plugin in plugins:
        if isinstance(plugin, FeatureDistillationPlugin):
            raise ValueError(
                f"{owner} gives the model several views of each sample, so "
                f"{type(plugin).__name__}, which reads model.features, would compare the features "
                "of all views with those of the samples: leave that plugin out, or use a method "
                "without views, such as ProtoCL"
            )
