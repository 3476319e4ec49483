"""Train parameters outside the model like those inside.

Avalanche puts the model's parameters, and only these, in the strategy's optimizer, and takes out
of it whatever the model does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

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


class Companion:
    """Trains parameters that are not the model's, at its rates, by an optimizer of the same kind.

    They are no group of the model's optimizer, since schedulers know only the groups that were
    there when they were made.

    Attributes:
        optimizer: of the parameters; None before there are any.
    """

    without: ClassVar[frozenset[str]] = frozenset()
    """Settings of the model's optimizer that are 0 here."""

    def __init__(self) -> None:
        self.optimizer: optim.Optimizer | None = None

    def join(self, parameters: Iterable[nn.Parameter], optimizer: optim.Optimizer) -> None:
        """Train also those of ``parameters`` that are not yet trained.

        Args:
            parameters: all, at least one.
            optimizer: of the model. Moments are kept as long as it is of the same kind.
        """
        if type(self.optimizer) is not type(optimizer):
            self._begin([*parameters], optimizer)
            return
        trained = self.optimizer.param_groups[0]["params"]
        known = {id(parameter) for parameter in trained}
        trained.extend(p for p in parameters if id(p) not in known)

    def _begin(self, parameters: list[nn.Parameter], optimizer: optim.Optimizer) -> None:
        self.optimizer = companion_optimizer(optimizer, parameters)
        for name in self.without & self.optimizer.defaults.keys():
            self.optimizer.param_groups[0][name] = 0.0

    def step(self, optimizer: optim.Optimizer) -> None:
        """One step at the present rate of ``optimizer``, after which gradients are zero."""
        if self.optimizer is None:
            return
        follow(self.optimizer, optimizer)
        self._rescale(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _rescale(self, companion: optim.Optimizer) -> None:
        """For subclasses: another rate than that of the model."""


class PlainCompanion(Companion):
    """Trains without momentum and weight decay, if wanted at a rate of its own.

    Args:
        lr: learning rate while that of the model is what it was at first; None for the model's.
    """

    without = frozenset({"momentum", "weight_decay"})

    def __init__(self, lr: float | None = None) -> None:
        super().__init__()
        self.lr = lr
        self._start = 0.0

    def _begin(self, parameters: list[nn.Parameter], optimizer: optim.Optimizer) -> None:
        super()._begin(parameters, optimizer)
        first = optimizer.param_groups[0]
        self._start = first.get("initial_lr", first["lr"])  # a scheduler may warm up

    def _rescale(self, companion: optim.Optimizer) -> None:
        if self.lr is not None and self._start:
            companion.param_groups[0]["lr"] *= self.lr / self._start
