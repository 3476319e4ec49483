"""Train parameters outside the model like those inside.

Avalanche puts the model's parameters, and only these, in the strategy's optimizer, and takes out
of it whatever the model does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

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


class PlainCompanion:
    """Trains parameters at rates that follow the model's, without momentum and weight decay.

    They are no group of the model's optimizer, since schedulers know only the groups that were
    there when they were made.

    Args:
        lr: learning rate while that of the model is what it was at first; None for the model's.

    Attributes:
        optimizer: of the parameters; None before there are any.
    """

    def __init__(self, lr: float | None = None) -> None:
        self.lr = lr
        self.optimizer: optim.Optimizer | None = None
        self._start = 0.0

    def join(self, parameters: Iterable[nn.Parameter], optimizer: optim.Optimizer) -> None:
        """Train also those of ``parameters`` that are not yet trained.

        Args:
            parameters: all, at least one.
            optimizer: of the model. Moments are kept as long as it is of the same kind.
        """
        if type(self.optimizer) is not type(optimizer):
            self.optimizer = companion_optimizer(optimizer, [*parameters])
            for name in {"momentum", "weight_decay"} & self.optimizer.defaults.keys():
                self.optimizer.param_groups[0][name] = 0.0
            first = optimizer.param_groups[0]
            self._start = first.get("initial_lr", first["lr"])  # a scheduler may warm up
            return
        trained = self.optimizer.param_groups[0]["params"]
        known = {id(parameter) for parameter in trained}
        trained.extend(p for p in parameters if id(p) not in known)

    def step(self, optimizer: optim.Optimizer) -> None:
        """One step at the present rate of ``optimizer``, after which gradients are zero."""
        if self.optimizer is None:
            return
        follow(self.optimizer, optimizer)
        if self.lr is not None and self._start:
            self.optimizer.param_groups[0]["lr"] *= self.lr / self._start
        self.optimizer.step()
        self.optimizer.zero_grad()
