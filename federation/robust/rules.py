"""Merging that withstands clients that lie.

An exact sum has no defence: one client moves it wherever it likes. Each rule here looks at the
clients' class means side by side, so it needs them in the clear (not under secure aggregation),
and gives a memory of level ``mean`` that is no longer the exact sum. What no rule can do: tell who
lies about a class that two clients hold, or outvote attackers who are many and imitate the spread
of honest clients. The measured table is in :mod:`protocl.federation.bench.robust_study`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from protocl.federation.robust.client_means import (
    consistency,
    geometric_median,
    near_copies,
    trimmed_mean,
    weighted_mean,
)
from protocl.federation.robust.side_by_side import ClientMeans, SideBySide
from protocl.memory import PrototypeMemory

if TYPE_CHECKING:
    from protocl.federation.wire.messages import Contribution

Centre = Literal["mean", "trimmed_mean", "geometric_median"]
CENTRES: tuple[Centre, ...] = ("mean", "trimmed_mean", "geometric_median")

_NEARNESS = 0.25
"""Means nearer than this share of the typical distance are those of one attacker."""


@dataclass
class RobustMerge:
    """Merges clients' memories under doubt; the defences are independent of each other.

    Attributes:
        centre: ``mean`` weighs clients by their samples, as the exact sum does;
            ``trimmed_mean`` and ``geometric_median`` give each client that holds a class one vote.
        trim: share of the votes that ``trimmed_mean`` takes off at either end.
        max_norm: means longer than this many times the median length, over the clients of the
            class, are shortened to it; 0 for no bound.
        max_count: counts above this many times the median, over the clients of the class, are
            lowered to it; 0 for no cap.
        min_consistency: clients that score less are left out, from 0 (nobody) to 1; see
            :func:`protocl.federation.robust.client_means.consistency`.
        share_votes: near copies of each other (Sybils) have one vote, and one client's count,
            together.

    Example:
        >>> def client(value):
        ...     labels = torch.zeros(4, dtype=torch.int64)
        ...     return PrototypeMemory(1).update(torch.full((4, 1), value), labels)
        >>> sent = [client(1.0), client(1.5), client(2.0), client(-99.0)]
        >>> RobustMerge("mean")(sent).means.item(), RobustMerge("trimmed_mean")(sent).means.item()
        (-23.625, 1.25)
    """

    centre: Centre = "geometric_median"
    trim: float = 0.3
    max_norm: float = 0.0
    max_count: float = 0.0
    min_consistency: float = 0.0
    share_votes: bool = False

    def __post_init__(self) -> None:
        if self.centre not in CENTRES:
            raise ValueError(f"centre='{self.centre}': expected one of {', '.join(CENTRES)}")
        if not 0 <= self.trim < 0.5:
            raise ValueError(f"trim={self.trim}: expected 0 to below 0.5")
        if not 0 <= self.min_consistency <= 1:
            raise ValueError(f"min_consistency={self.min_consistency}: expected 0 to 1")
        for name, value in (("max_norm", self.max_norm), ("max_count", self.max_count)):
            if value != 0 and not value >= 1:  # NaN is neither
                raise ValueError(f"{name}={value}: expected 0 for none, or 1 or more medians")

    def __call__(self, memories: Sequence[PrototypeMemory]) -> PrototypeMemory:
        """The merged memory, of level ``mean``.

        Args:
            memories: one of each client, of any level, all of one kind.
        """
        clients = SideBySide(memories, self._bounded)
        votes = self._votes(clients)
        blocks = [(b.classes, *self._centres(b, votes[b.members])) for b in clients]
        classes, counts, means = map(torch.cat, zip(*blocks, strict=True))
        order = classes.argsort()
        return _memory_of(memories[0], classes[order], counts[order], means[order])

    def _centres(self, block: ClientMeans, votes: Tensor) -> tuple[Tensor, Tensor]:
        """Counts ``(C,)`` and means ``(C, W)`` of the merged classes."""
        own = votes[:, None] * block.held
        counts = (own * block.counts).sum(0).round()
        if block.most_holders == 1:
            return counts, block.means.sum(0)
        if self.centre == "mean":
            return counts, weighted_mean(block.means, own * block.counts)
        if self.centre == "trimmed_mean":
            return counts, trimmed_mean(block.means, own, self.trim)
        return counts, geometric_median(block.means, own)

    def _bounded(self, clients: ClientMeans) -> ClientMeans:
        counts, means, held = clients.counts, clients.means, clients.held
        if self.max_count:
            counts = torch.minimum(counts, (self.max_count * _median(counts, held)).ceil())
        if self.max_norm:
            norms = means.norm(dim=2)
            bound = self.max_norm * _median(norms, held)
            factors = torch.where(norms > bound, bound / norms, 1.0)
            means = means * factors[:, :, None]
        return replace(clients, counts=counts, means=means)

    def _votes(self, clients: SideBySide) -> Tensor:
        """Say of each client, ``(K,)`` from 0 to 1."""
        votes = torch.ones(len(clients), dtype=torch.float64, device=clients.like.device)
        if self.share_votes:
            votes = votes / near_copies(clients, _NEARNESS)
        if self.min_consistency:
            scores = consistency(clients, votes)
            votes = torch.where(scores >= self.min_consistency, votes, 0.0)
        return votes


@dataclass
class ConsistencyScreen:
    """Keeps inconsistent contributions out of an exact merge; a ``Screen`` of the strategy.

    The contributions of a round are compared with each other, so it takes rounds with several
    clients a class. What passes is merged exactly, at every level.

    Attributes:
        minimum: contributions that score less are rejected, from 0 to 1.
    """

    minimum: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= 1:
            raise ValueError(f"minimum={self.minimum}: expected 0 to 1")

    def __call__(
        self, contributions: Sequence[Contribution], merged: PrototypeMemory
    ) -> list[str | None]:
        """For each contribution None, or why it is rejected."""
        clients = SideBySide([contribution.memory for contribution in contributions])
        votes = 1.0 / near_copies(clients, _NEARNESS).to(torch.float64)
        return [
            None if score >= self.minimum else f"consistency {score:.2f} below {self.minimum:g}"
            for score in consistency(clients, votes).tolist()
        ]


def _median(values: Tensor, held: Tensor) -> Tensor:
    """Median over the clients that hold a class, ``(C,)``."""
    return values.masked_fill(~held, torch.nan).nanmedian(dim=0).values


def _memory_of(
    like: PrototypeMemory, classes: Tensor, counts: Tensor, means: Tensor
) -> PrototypeMemory:
    """A memory of level ``mean`` with these statistics; classes without samples are left out."""
    kept = counts > 0
    empty = PrototypeMemory(
        like.feature_dim, feature_map=like.feature_map, exact=like.exact, step=like.step,
        fingerprint=like.fingerprint,
    )  # fmt: skip
    return PrototypeMemory.from_statistics(
        empty, classes=classes[kept], counts=counts[kept].to(torch.int64),
        sums=means[kept] * counts[kept, None],
    )  # fmt: skip
