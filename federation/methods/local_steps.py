"""What a client does between two rounds of a method that trains by gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from protocl.config.validation import (
    AT_LEAST_1,
    BELOW_1,
    NOT_NEGATIVE,
    POSITIVE,
    ranged,
    require_declared,
)
from protocl.errors import as_config_error


@dataclass
class LocalSteps:
    """Settings of a client's training.

    Attributes:
        local_epochs: passes over the client's data in each round.
        batch_size: samples in a mini-batch.
        lr: learning rate of SGD.
        momentum: its momentum, forgotten after each round.
        weight_decay: its L2 penalty.
    """

    local_epochs: int = ranged(1, AT_LEAST_1)
    batch_size: int = ranged(64, AT_LEAST_1)
    lr: float = ranged(0.1, POSITIVE)
    momentum: float = ranged(0.0, BELOW_1)
    weight_decay: float = ranged(0.0, NOT_NEGATIVE)

    def check(self) -> None:
        """Refuse what the fields do not allow, also where no command line has filled them.

        Raises:
            ConfigError: there is such a value.
        """
        with as_config_error("method."):
            require_declared(self)


def descend(
    config: LocalSteps,
    weights: Iterable[Tensor],
    loss: Callable[[Tensor], Tensor],
    samples: int,
    generator: torch.Generator,
) -> None:
    """Local epochs of SGD, in place.

    Args:
        config: number of epochs, size of a batch, optimizer.
        weights: what is trained; requires gradients.
        loss: of the samples with these row numbers ``(B,)``.
        samples: how many there are.
        generator: decides their order.
    """
    optimizer = torch.optim.SGD(
        weights, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    for _ in range(config.local_epochs):
        for rows in torch.randperm(samples, generator=generator).split(config.batch_size):
            optimizer.zero_grad()
            loss(rows).backward()
            optimizer.step()
