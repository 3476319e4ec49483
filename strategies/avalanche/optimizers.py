"""Optimizers from the settings that all strategies share."""

from __future__ import annotations

from torch import nn, optim

from protocl.config import StrategyConfig
from protocl.errors import ConfigError


def build_optimizer(config: StrategyConfig, model: nn.Module) -> optim.Optimizer:
    """The optimizer that ``config`` describes, over all parameters of ``model``.

    Raises:
        ConfigError: ``config.optimizer`` is neither ``"sgd"`` nor ``"adam"``.
    """
    parameters = list(model.parameters())
    if config.optimizer == "sgd":
        return optim.SGD(
            parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    if config.optimizer == "adam":
        return optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
    raise ConfigError(f"strategy.optimizer={config.optimizer}: expected sgd or adam")
