"""Features of a host strategy's mini-batches, read while its model runs on them."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn

from protocl.strategies.plugin.classifier_layer import FeatureFinder, one_sample
from protocl.strategies.plugin.extraction import only_host_reads
from protocl.strategies.plugin.feature_hook import (
    FeatureHook,
    FeaturePoint,
    joined,
    refuse_compiled,
)
from protocl.strategies.plugin.model_output import width_of
from protocl.strategies.plugin.task_classes import tasks_of


class FeatureReader:
    """Reads the features of a mini-batch from :meth:`open` to :meth:`close`.

    Args:
        layer: name of the model's classification layer; found by itself if None.
        differentiable: keep the features in the graph, for losses that train the backbone.

    Attributes:
        hook: what listens.
    """

    def __init__(self, layer: str | None = None, differentiable: bool = False) -> None:
        self.hook = FeatureHook(differentiable)
        self._find = FeatureFinder(layer)
        self._model: weakref.ref[nn.Module] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_model": None}  # neither copied nor pickled

    @property
    def point(self) -> FeaturePoint | None:
        """Where the features were found last."""
        return self._find.point

    def meet(self, model: nn.Module) -> bool:
        """Get to know the model that is about to train; whether it is another than before.

        Raises:
            ValueError: as :func:`.refuse_compiled`.
        """
        refuse_compiled(model)
        another = self._model is not None and self._model() is not model
        self._model = weakref.ref(model)
        return another

    def find(self, strategy: Any) -> FeaturePoint:
        """Where the features are in the model of ``strategy``, whose mini-batch is loaded."""
        if only_host_reads(strategy, strategy.mbatch):
            return self._find(strategy.model, strategy.forward)
        sample = one_sample(strategy.model, strategy.mbatch[0], tasks_of(strategy))
        return self._find(strategy.model, sample)

    def open(self, strategy: Any) -> None:
        """Start to listen, before the forward pass."""
        self.hook.open_at(strategy.model, self.find(strategy))

    def read(self, strategy: Any) -> Tensor:
        """Features ``(N, D)`` of the mini-batch, after a forward pass that must have made some.

        Raises:
            RuntimeError: there are none, or as :meth:`close`.
        """
        return joined(self.hook.close(strategy.mb_output), tasks_of(strategy))

    def close(self, strategy: Any) -> Tensor | None:
        """Features ``(N, D)`` of the mini-batch, after the forward pass; None if none were read.

        Raises:
            RuntimeError: as :meth:`.FeatureHook.close` and :func:`.joined`.
        """
        seen = self.hook.close(strategy.mb_output)
        return joined(seen, tasks_of(strategy)) if seen else None

    def width(self, strategy: Any) -> int:
        """Columns that an answer to the present mini-batch needs: the model's and one a label."""
        labels, point = int(strategy.mb_y.max()) + 1, self.point
        if point is not None and point.after:  # what the model returned are features, no scores
            return labels
        place = None if point is None else point.scores
        return max(width_of(strategy.mb_output, len(strategy.mb_y), place), labels)
