"""The class means of many clients side by side, a few classes at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory

_ELEMENTS = 1 << 20
"""Of the means of a block: 8 MiB. What is computed of them takes some ten times as much."""


@dataclass(frozen=True)
class ClientMeans:
    """Means and counts of the ``M`` clients that hold any of ``C`` classes.

    Attributes:
        classes: ``(C,)`` class ids, ascending.
        members: ``(M,)`` numbers of the clients, ascending.
        counts: ``(M, C)`` float64, 0 where a client lacks a class.
        means: ``(M, C, W)`` float64, 0 where a client lacks a class.
    """

    classes: Tensor
    members: Tensor
    counts: Tensor
    means: Tensor

    @property
    def held(self) -> Tensor:
        """``(M, C)`` whether a client holds a class."""
        return self.counts > 0

    @property
    def most_holders(self) -> int:
        """Of how many clients a class is at most."""
        return int(self.held.sum(0).max())


Bound = Callable[[ClientMeans], ClientMeans]
"""Shortens or lowers what looks too large beside the others."""


class SideBySide:
    """The means of memories that fit together, in blocks that need a bounded memory each.

    Classes of one client, of two, and of more are in blocks of their own, since they are judged
    differently; so many classes that a single client makes up cost no more than it sent.

    Args:
        memories: one of each client.
        bound: is applied to each block.

    Raises:
        ValueError, FingerprintError: they do not fit, or there are none.
    """

    def __init__(
        self, memories: Sequence[PrototypeMemory], bound: Bound = lambda block: block
    ) -> None:
        if not memories:
            raise ValueError("no memories: expected those of one client or more")
        self._memories, self._bound = memories, bound
        self.like = memories[0]
        for other in memories[1:]:
            self.like.require_compatible(other)
        held = torch.cat([memory.classes for memory in memories])
        self._classes, self._holders = torch.unique(held, return_counts=True)

    def __len__(self) -> int:
        """Number of clients."""
        return len(self._memories)

    def __iter__(self) -> Iterator[ClientMeans]:
        """Blocks of ascending classes; every class is in one of them."""
        holders = self._holders
        for group in (holders == 1, holders == 2, holders > 2):
            classes = self._classes[group]
            while len(classes):
                block = classes[: max(1, _ELEMENTS // self.like.width)]
                members = self._members(block)
                block = block[: max(1, _ELEMENTS // (self.like.width * len(members)))]
                yield self._bound(self._block(block, self._members(block)))
                classes = classes[len(block) :]

    def _members(self, classes: Tensor) -> list[int]:
        return [
            number
            for number, memory in enumerate(self._memories)
            if bool(torch.isin(memory.class_ids, classes).any())
        ]

    def _block(self, classes: Tensor, members: list[int]) -> ClientMeans:
        device, width = self.like.device, self.like.width
        counts = torch.zeros(len(members), len(classes), dtype=torch.float64, device=device)
        means = torch.zeros(*counts.shape, width, dtype=torch.float64, device=device)
        for place, number in enumerate(members):
            memory = self._memories[number]
            rows = torch.isin(memory.class_ids, classes).nonzero().squeeze(1)
            columns = torch.searchsorted(classes, memory.class_ids[rows])
            counts[place, columns] = memory.counts[rows].to(torch.float64)
            means[place, columns] = memory.means_at(rows)
        return ClientMeans(classes, torch.tensor(members, device=device), counts, means)
