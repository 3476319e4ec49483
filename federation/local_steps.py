"""What a client does between two rounds of a method that trains by gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from protocl.errors import ConfigError


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

    local_epochs: int = 1
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ConfigError: a number is out of range.
        """
        for key in ("local_epochs", "batch_size", "lr"):
            if not 0 < getattr(self, key) < math.inf:
                raise ConfigError(f"method.{key}={getattr(self, key)}: expected a number > 0")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"method.momentum={self.momentum}: expected 0 <= momentum < 1")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"method.weight_decay={self.weight_decay}: expected a number >= 0")


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
