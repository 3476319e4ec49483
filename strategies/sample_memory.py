"""A fixed budget of stored samples, shared equally by the experiences."""

from __future__ import annotations

from typing import Any

import torch


class SampleMemory:
    """Keeps ``budget // t`` random samples of each of the ``t`` experiences so far.

    What an experience keeps is in random order, so that its first samples stay random ones when
    its share shrinks. Classes are balanced on average only.

    Args:
        budget: samples in all; 0 keeps none.

    Source: the released code of ProtoCL (Kessler et al. 2023).
    """

    def __init__(self, budget: int) -> None:
        if budget < 0:
            raise ValueError(f"mem_size={budget}: expected a number of samples, at least 0")
        self.budget = budget
        self.parts: list[Any] = []

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def add(self, dataset: Any) -> None:
        """Store a share of the Avalanche dataset of an experience, and shrink the other shares."""
        if self.budget == 0:
            return
        share = self.budget // (len(self.parts) + 1)
        chosen = torch.randperm(len(dataset))[:share].tolist()
        self.parts = [part.subset(range(min(share, len(part)))) for part in self.parts]
        self.parts.append(dataset.subset(chosen))

    def beside(self, dataset: Any) -> Any:
        """``dataset`` and the stored samples, repeated so that there are about as many of them.

        They are repeated ``max(len(dataset) // len(self), 1)`` times.
        """
        if len(self) == 0:
            return dataset
        stored = self.parts[0]
        for part in self.parts[1:]:
            stored = stored.concat(part)
        times = max(len(dataset) // len(self), 1)
        return dataset.concat(stored.subset(list(range(len(self))) * times))
