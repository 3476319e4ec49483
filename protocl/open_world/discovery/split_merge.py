"""The number of categories by splitting and merging them until the evidence is content."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.open_world.discovery.inverse_wishart import InverseWishart
from protocl.open_world.discovery.k_means import Clustering, SemiSupervisedKMeans

LEAST_HALF = 6
"""Samples of a half from which on it may be a category of its own."""


@dataclass(frozen=True)
class Round:
    """What one round changed.

    Attributes:
        categories: their number before it.
        splits: categories that became two.
        merges: pairs that became one.
    """

    categories: int
    splits: int
    merges: int


class SplitAndMerge:
    """Alternates semi-supervised k-means with splits and merges of the categories that are new.

    A new category is split where the evidence prefers its halves by 2-means
    (:meth:`.InverseWishart.split_evidence`); of those left, nearest pairs become one where it
    prefers their union, each in at most one merge a round, at their weighted mean. A known class is
    never split, so that a search begins with more categories than are thought; it may absorb a new
    one that its unlabelled samples are one category with (own).

    Source: GPC (Zhao, Wen & Han, ICCV 2023, section 3.2). Their code accepts one rejected proposal
    in ten by chance, and keeps both partners of a merge; this does neither.

    Args:
        rounds: at most so many.
        explore: probability of accepting a proposal that the evidence rejects.
        strength, scale: of the prior (:meth:`.InverseWishart.of`).
        restarts: of the first clustering; later ones start where the round before ended.
        spherical: see :class:`.SemiSupervisedKMeans`.
        seed: of starts and exploration.
    """

    def __init__(
        self,
        *,
        rounds: int = 20,
        explore: float = 0.0,
        strength: float = 1e-4,
        scale: float = 5e-3,
        restarts: int = 10,
        spherical: bool = False,
        seed: int = 0,
    ) -> None:
        if not 0 <= explore < 1:
            raise ValueError(f"explore={explore}: expected a probability below 1")
        self.rounds, self.explore = rounds, explore
        self.strength, self.scale = strength, scale
        self.restarts, self.spherical, self.seed = restarts, spherical, seed

    @torch.no_grad()
    def fit(
        self, known: PrototypeMemory, samples: Tensor, categories: int
    ) -> tuple[Clustering, list[Round]]:
        """Find categories and their number.

        Args:
            known: statistics of the known classes.
            samples: ``(N, D)`` unlabelled features.
            categories: number to start from, known classes included.

        Raises:
            ValueError: as :meth:`.SemiSupervisedKMeans.fit`.
        """
        chance = np.random.default_rng(self.seed)
        found = self._means(categories, self.restarts).fit(known, samples)
        mapped = known.feature_map(samples)
        history: list[Round] = []
        while len(history) < self.rounds:
            step = _Step(found, known.classes, mapped, self, chance)
            starts = step.starts()
            history.append(Round(len(found.centres.ids), step.splits, step.merges))
            if not step.splits + step.merges:
                break
            found = self._means(len(known) + len(starts), 1).fit(known, samples, starts=starts)
        return found, history

    def _means(self, categories: int, restarts: int) -> SemiSupervisedKMeans:
        return SemiSupervisedKMeans(
            categories, restarts=restarts, spherical=self.spherical, seed=self.seed
        )


class _Step:
    """Proposals of one round."""

    def __init__(
        self,
        found: Clustering,
        known: Tensor,
        samples: Tensor,
        settings: SplitAndMerge,
        chance: np.random.Generator,
    ) -> None:
        width = samples.shape[1]
        assigned = found.predict(samples)
        self.rows = PrototypeMemory(width, "full").update(samples, assigned)
        self.known = set(known.tolist())
        everything = PrototypeMemory(width).update(samples, torch.zeros_like(assigned))
        self.prior = InverseWishart.of(everything, strength=settings.strength, scale=settings.scale)
        self.samples, self.assigned = samples, assigned
        self.settings, self.chance = settings, chance
        self.splits = self.merges = 0

    def starts(self) -> Tensor:
        """Centres ``(K', W)`` of the new categories after splits and merges."""
        centres, whole = [], []
        for class_id in self.rows.classes.tolist():
            halves = None if class_id in self.known else self._halves(class_id)
            if halves is not None and self._accepts(float(self.prior.split_evidence(halves))):
                self.splits += 1
                centres += list(halves.means)
            else:
                whole.append(class_id)
        centres += self._after_merges(self.rows.subset(whole)) if whole else []
        return torch.stack(centres) if centres else self.samples.new_zeros(0, self.rows.width)

    def _halves(self, class_id: int) -> PrototypeMemory | None:
        """A category by 2-means as two rows, or None where a half would be too small."""
        own = self.samples[self.assigned == class_id]
        if len(own) < 2 * LEAST_HALF:
            return None
        nothing = PrototypeMemory(own.shape[1])
        found = SemiSupervisedKMeans(2, restarts=3, seed=self.settings.seed).fit(nothing, own)
        halves = PrototypeMemory(own.shape[1], "full").update(own, found.predict(own))
        large = len(halves) == 2 and int(halves.counts.min()) >= LEAST_HALF
        return halves if large else None

    def _after_merges(self, rows: PrototypeMemory) -> list[Tensor]:
        """Means of the new rows, of which nearest pairs may have become one."""
        means, counts, ids = rows.means, rows.counts, rows.classes.tolist()
        gaps = torch.cdist(means, means).fill_diagonal_(torch.inf)
        kept = {row: means[row] for row, class_id in enumerate(ids) if class_id not in self.known}
        taken: set[int] = set()
        for row in sorted(kept, key=lambda row: float(gaps[row].min())):
            other = int(gaps[row].argmin())
            if row == other or {row, other} & taken or not self._same(rows, row, other):
                continue
            taken |= {row, other}
            self.merges += 1
            kept.pop(row)
            if other in kept:
                both = torch.tensor([row, other])
                kept[other] = (counts[both] / counts[both].sum()).to(means) @ means[both]
        return list(kept.values())

    def _same(self, rows: PrototypeMemory, first: int, second: int) -> bool:
        pair = rows.subset(rows.classes[[first, second]])
        return self._accepts(-float(self.prior.split_evidence(pair)))

    def _accepts(self, log_odds: float) -> bool:
        explores = self.settings.explore > 0 and self.chance.random() < self.settings.explore
        return log_odds > 0 or explores
