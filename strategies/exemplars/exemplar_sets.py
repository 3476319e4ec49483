"""A fixed budget of stored samples, shared equally by the classes, the best ones first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ExemplarSets:
    """Keeps the first ``budget // C`` samples of each of the ``C`` classes so far.

    Args:
        budget: samples in all.

    Source: Rebuffi et al. 2017 (iCaRL), algorithm 5.
    """

    def __init__(self, budget: int) -> None:
        if budget < 1:
            raise ValueError(f"mem_size={budget}: expected a number of samples, at least 1")
        self.budget = budget
        self.sets: dict[int, Any] = {}

    def __len__(self) -> int:
        return sum(len(samples) for samples in self.sets.values())

    def share(self, further: int = 0) -> int:
        """Samples of each class when there are ``further`` more classes."""
        return self.budget // max(len(self.sets) + further, 1)

    def put(self, fresh: Mapping[int, Any]) -> None:
        """Store ordered Avalanche datasets by class, and cut all sets to their share.

        Raises:
            ValueError: the budget is smaller than the number of classes.
        """
        self.sets.update(fresh)
        share = self.share()
        if not share:
            raise ValueError(
                f"mem_size={self.budget}: less than one sample for each of {len(self.sets)} classes"
            )
        self.sets = {
            class_id: samples.subset(range(min(share, len(samples))))
            for class_id, samples in self.sets.items()
        }

    def beside(self, dataset: Any) -> Any:
        """``dataset`` followed by all stored samples."""
        for samples in self.sets.values():
            dataset = dataset.concat(samples)
        return dataset
