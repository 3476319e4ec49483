"""A fixed budget of stored samples, shared equally by the experiences."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from avalanche.benchmarks.utils import concat_datasets
from avalanche.training.storage_policy import ExemplarsBuffer

from protocl.config.validation import require_choice
from protocl.strategies.exemplars.medoids import medoids
from protocl.strategies.plugin.extraction import batches_of, labels_of

Selection = Literal["random", "medoids"]

_BATCH = 1024


class SampleMemory(ExemplarsBuffer):
    """Keeps ``max_size // t`` samples of each of the ``t`` experiences so far.

    They are stored in an order in which any first few are a good choice, for the share shrinks.
    Avalanche's ``ReplayPlugin`` takes it as its ``storage_policy``.

    Args:
        max_size: samples in all; 0 keeps none.
        selection: ``"random"`` for any samples, with classes balanced on average only (the released
            code of ProtoCL, Kessler et al. 2023); ``"medoids"`` for those near which all samples
            of their class lie in the space of inputs, as many of each class: better where pixels
            say what is alike and few of many are kept, worse on photographs.

    Example:
        >>> from protocl.checks import toy
        >>> kept = SampleMemory(12, "medoids")
        >>> for experience in toy.stream().train_stream:
        ...     kept.add(experience.dataset)
        >>> len(kept), [len(part) for part in kept.parts]
        (12, [4, 4, 4])
    """

    def __init__(self, max_size: int, selection: Selection = "random") -> None:
        if max_size < 0:
            raise ValueError(f"mem_size={max_size}: expected a number of samples, at least 0")
        require_choice("selection", selection, get_args(Selection))
        super().__init__(max_size)
        self.selection = selection
        self.parts: list[Any] = []

    def __len__(self) -> int:
        return len(self.buffer)

    def post_adapt(self, agent_state: Any, exp: Any) -> None:
        """Store a share of ``exp``; the device of ``agent_state`` is where medoids are found."""
        self.add(exp.dataset, agent_state.device)

    def add(self, dataset: Any, device: torch.device | None = None, num_workers: int = 0) -> None:
        """Store a share of the Avalanche dataset of an experience, and shrink the other shares.

        Args:
            dataset: of the experience.
            device: where medoids are looked for; where the samples are if None.
            num_workers: processes that load samples which are not in memory.
        """
        if self.max_size == 0:
            return
        share = self.max_size // (len(self.parts) + 1)
        if self.selection == "random":
            chosen = torch.randperm(len(dataset))[:share].tolist()
        else:
            chosen = _medoids_of_classes(dataset, share, device, num_workers)
        self.parts.append(dataset.subset(chosen))
        self._shrink(share)

    def resize(self, strategy: Any, new_size: int) -> None:
        """Change the budget; samples that are gone do not come back."""
        self.max_size = new_size
        if self.parts:
            self._shrink(new_size // len(self.parts))

    def _shrink(self, share: int) -> None:
        self.parts = [part.subset(range(min(share, len(part)))) for part in self.parts]
        self.buffer = concat_datasets(self.parts)

    def beside(self, dataset: Any) -> Any:
        """``dataset`` and the stored samples, repeated so that there are about as many of them.

        They are repeated ``max(len(dataset) // len(self), 1)`` times.
        """
        if len(self) == 0:
            return dataset
        times = max(len(dataset) // len(self), 1)
        return dataset.concat(self.buffer.subset(list(range(len(self))) * times))


def _medoids_of_classes(
    dataset: Any, share: int, device: torch.device | None, num_workers: int
) -> list[int]:
    """Rows of ``dataset``, the classes in turn; of small classes all that there is."""
    labels = labels_of(dataset)
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
