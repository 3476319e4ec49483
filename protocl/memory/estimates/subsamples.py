"""Several means a class, so that their spread tells how its samples spread."""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST = torch.iinfo(torch.int64).max


class SubSamples:
    """Deals the samples of each class into groups; a group travels as a class of its own.

    Group ``j`` of class ``c`` has the id ``J c + j``, so that a memory, a message and a ledger take
    groups as they take classes. With one group a class nothing changes.

    Args:
        number: groups ``J`` of each class, 1 or more. A class of fewer samples has fewer groups.
        seed: of the dealing, which looks at nothing but labels.

    Raises:
        ValueError: ``number`` is not positive.
    """

    def __init__(self, number: int = 1, seed: int = 0) -> None:
        if number < 1:
            raise ValueError(f"means={number}: expected one mean a class or more")
        self.number = number
        self.seed = seed

    def __call__(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The features as they are, and the group ``(N,)`` of each sample for its label.

        Raises:
            OverflowError: an id is too large for groups, as those of classes known by name are.
        """
        if self.number == 1 or len(labels) == 0:
            return features, labels
        if int(labels.max()) > _LARGEST // self.number - 1:
            raise OverflowError(
                f"class id {int(labels.max())} leaves no room for means={self.number} groups a "
                "class: number classes from 0, or use means=1"
            )
        return features, labels * self.number + self._dealt(labels)

    def parents(self, groups: Tensor) -> Tensor:
        """The class ``(G,)`` of each group."""
        return groups // self.number

    def _dealt(self, labels: Tensor) -> Tensor:
        """``(N,)`` number of each sample's group: in turn, in an order that is drawn."""
        drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed))
        drawn = drawn.to(labels.device)
        order = drawn[labels[drawn].argsort(stable=True)]
        _, sizes = labels[order].unique_consecutive(return_counts=True)
        starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        turns = torch.arange(len(order), device=labels.device) - starts
        return torch.empty_like(labels).scatter_(0, order, (turns % self.number).to(labels.dtype))
