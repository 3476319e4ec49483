"""Rows: groups of samples that are thought of as one category, as counts and sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Counts and sums of groups of samples, in the directions of one :class:`.TwoCovariance`.

    Attributes:
        ids: ``(R,)`` int64.
        counts: ``(R,)`` float64 numbers of samples.
        coordinates: ``(R, d)`` float64 sums of their coordinates.
    """

    ids: Tensor
    counts: Tensor
    coordinates: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, chosen: Tensor) -> Rows:
        """Some rows: their places ``(n,)``, or a mask ``(R,)``."""
        return Rows(self.ids[chosen], self.counts[chosen], self.coordinates[chosen])

    def of(self, wanted: Tensor) -> Rows:
        """The rows ``(N,)`` of some ids; those here must ascend.

        Raises:
            KeyError: there is no row of an id.
        """
        places = torch.searchsorted(self.ids, wanted).clamp(max=len(self) - 1)
        missing = wanted[self.ids[places] != wanted]
        if len(missing):
            raise KeyError(f"there are no rows of {missing.unique().tolist()}")
        return self[places]

    def beside(self, other: Rows) -> Rows:
        """These rows and then those."""
        return Rows(
            torch.cat([self.ids, other.ids]),
            torch.cat([self.counts, other.counts]),
            torch.cat([self.coordinates, other.coordinates]),
        )

    def grouped(self, groups: Tensor) -> Rows:
        """The sums over groups of rows.

        Args:
            groups: ``(R,)`` int64, the group of each row, from 0 without gaps.

        Returns:
            One row a group; its id is the smallest of its rows.
        """
        n_groups = int(groups.max()) + 1 if len(groups) else 0
        width = self.coordinates.shape[1]
        ids = self.ids.new_full((n_groups,), torch.iinfo(torch.int64).max)
        return Rows(
            ids.scatter_reduce(0, groups, self.ids, "amin"),
            self.counts.new_zeros(n_groups).index_add(0, groups, self.counts),
            self.coordinates.new_zeros(n_groups, width).index_add(0, groups, self.coordinates),
        )
