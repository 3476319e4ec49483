"""Train parameters outside the model like those inside.

Avalanche puts the model's parameters, and only these, in the strategy's optimizer, and takes out
of it whatever the model does not have.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn, optim


def companion_optimizer(
    optimizer: optim.Optimizer, parameters: list[nn.Parameter]
) -> optim.Optimizer:
    """A new optimizer of the same kind and settings for other parameters.

    Args:
        optimizer: of the model; the settings are those of its first group.
        parameters: what to train.
    """
    group = optimizer.param_groups[0]
    settings = {name: group[name] for name in optimizer.defaults if name in group}
    kind: Callable[..., optim.Optimizer] = type(optimizer)
    companion = kind(parameters, lr=group["lr"])
    companion.param_groups[0].update(settings)
    return companion


def follow(companion: optim.Optimizer, optimizer: optim.Optimizer) -> None:
    """Give ``companion`` the present learning rate of the other's first group."""
    for group in companion.param_groups:
        group["lr"] = optimizer.param_groups[0]["lr"]
