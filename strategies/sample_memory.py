"""A fixed budget of stored samples, shared equally by the experiences."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch

from protocl.medoids import medoids
from protocl.strategies.extraction import batches_of
from protocl.strategies.tensor_rows import integers

Selection = Literal["random", "medoids"]

_BATCH = 1024


class SampleMemory:
    """Keeps ``budget // t`` samples of each of the ``t`` experiences so far.

    They are stored in an order in which any first few are a good choice, for the share shrinks.

    Args:
        budget: samples in all; 0 keeps none.
        selection: ``"random"`` for any samples, with classes balanced on average only (the released
            code of ProtoCL, Kessler et al. 2023); ``"medoids"`` for those near which all samples
            of their class lie in the space of inputs, as many of each class.
    """

    def __init__(self, budget: int, selection: Selection = "random") -> None:
        if budget < 0:
            raise ValueError(f"mem_size={budget}: expected a number of samples, at least 0")
        if selection not in get_args(Selection):
            raise ValueError(
                f"selection='{selection}': expected {' or '.join(get_args(Selection))}"
            )
        self.budget = budget
        self.selection = selection
        self.parts: list[Any] = []

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def add(self, dataset: Any, device: torch.device | None = None, num_workers: int = 0) -> None:
        """Store a share of the Avalanche dataset of an experience, and shrink the other shares.

        Args:
            dataset: of the experience.
            device: where medoids are looked for; where the samples are if None.
            num_workers: processes that load samples which are not in memory.
        """
        if self.budget == 0:
            return
        share = self.budget // (len(self.parts) + 1)
        if self.selection == "random":
            chosen = torch.randperm(len(dataset))[:share].tolist()
        else:
            chosen = _medoids_of_classes(dataset, share, device, num_workers)
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


def _medoids_of_classes(
    dataset: Any, share: int, device: torch.device | None, num_workers: int
) -> list[int]:
    """Rows of ``dataset``, the classes in turn; of small classes all that there is."""
    labels = torch.from_numpy(integers(dataset.targets))
    classes = sorted((torch.nonzero(labels == c).flatten() for c in labels.unique()), key=len)
    ranked, left = [], share
    for number, rows in enumerate(classes):
        quota = -(-left // (len(classes) - number))
        batches = batches_of(dataset.subset(rows.tolist()), _BATCH, num_workers)
        inputs = torch.cat([batch[0].to(device) for batch in batches])
        best = rows[medoids(inputs, quota).cpu()].tolist()
        ranked += [(rank, number, row) for rank, row in enumerate(best)]
        left -= len(best)
    return [row for _, _, row in sorted(ranked)]
