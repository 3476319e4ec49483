"""Optimizers from the settings that all strategies share."""

from __future__ import annotations

from torch import nn, optim

from protocl.config import StrategyConfig


def build_optimizer(
    config: StrategyConfig, model: nn.Module, *, nesterov: bool = False
) -> optim.Optimizer:
    """The optimizer that ``config`` describes, over all parameters of ``model``.

    Args:
        config: see above.
        model: what is trained.
        nesterov: take Nesterov's momentum; SGD alone knows it.
    """
    parameters = list(model.parameters())
    if config.optimizer == "sgd":
        return optim.SGD(
            parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay,
            nesterov=nesterov,
        )  # fmt: skip
    return optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
