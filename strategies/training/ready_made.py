"""Ready-made strategies: Avalanche's template around plugins that bring loss and answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avalanche.training.plugins.evaluation import default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import nn, optim

from protocl.strategies.plugin.model_output import ScoresCrossEntropy


class ReadyMade(SupervisedTemplate):
    """A strategy that plugins of its own make what it is.

    Args:
        model: any model whose classification layer can be found.
        optimizer: for the model.
        own: its plugins, without None.
        plugins: further Avalanche plugins.
        **settings: those of Avalanche's ``SupervisedTemplate``.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: optim.Optimizer,
        own: Sequence[Any],
        plugins: Sequence[Any] | None = None,
        **settings: Any,
    ) -> None:
        settings.setdefault("evaluator", default_evaluator)
        settings.setdefault("criterion", ScoresCrossEntropy())
        first = [plugin for plugin in own if plugin is not None]
        super().__init__(
            model=model, optimizer=optimizer, plugins=[*first, *(plugins or [])], **settings
        )
