"""Semi-supervised k-means whose labelled part is a memory: no labelled sample is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.open_world.discovery.centres import (
    Centres,
    Share,
    Uniform,
    at_least_single,
    plus_plus,
)


@dataclass(frozen=True, eq=False)
class Clustering:
    """Categories that were found.

    Attributes:
        centres: of all categories; those of known classes have their ids.
        memory: counts and sums of the unlabelled samples by category, of level ``mean``. It adds
            to others in the same space like any memory.
        inertia: sum of squared distances to the centres ``assigned_to``, of unlabelled samples and
            of those behind the memory. Where the memory keeps no second moments, the scatter of the
            latter within their classes, which no choice of centres changes, is left out.
        assigned_to: the centres before the last step, which ``inertia`` and ``memory`` belong to.
        iterations: steps of the run that was best.
    """

    centres: Centres
    memory: PrototypeMemory
    inertia: float
    assigned_to: Centres
    iterations: int

    def predict(self, samples: Tensor) -> Tensor:
        """Category ids ``(N,)`` of samples ``(N, W)`` in the space of the centres."""
        return self.centres.ids[self.centres.nearest(samples)[0]]


class SemiSupervisedKMeans:
    """Lloyd's algorithm in which samples of known classes stay where they are.

    A centre of a known class is ``(s_k + sum assigned) / (n_k + count)``, so that counts and sums
    stand for the labelled samples, and those of several clients add up. In fixed point the
    federated result is the central one bit for bit, given the starts.

    Source: Vaze et al., "Generalized category discovery", CVPR 2022, section 3.2. Unlike in their
    code an empty cluster keeps its centre.

    Args:
        categories: ``K``, known classes included.
        restarts: with other starts; the one of least inertia is taken.
        iterations: at most so many steps each.
        tolerance: stop when the squared sum of the centres' shifts is no larger.
        spherical: keep centres at unit length, for samples that have it.
        seed: of the starts.

    Example:
        >>> known = PrototypeMemory(1).update(torch.tensor([[0.0], [1.0]]), torch.tensor([7, 7]))
        >>> found = SemiSupervisedKMeans(2).fit(known, torch.tensor([[0.2], [8.0], [9.0]]))
        >>> found.centres.ids.tolist(), found.predict(torch.tensor([[8.5]])).tolist()
        ([0, 7], [0])
    """

    def __init__(
        self,
        categories: int,
        *,
        restarts: int = 10,
        iterations: int = 100,
        tolerance: float = 1e-4,
        spherical: bool = False,
        seed: int = 0,
    ) -> None:
        for name, value in (("restarts", restarts), ("iterations", iterations)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected 1 or more")
        self.categories = categories
        self.restarts = restarts
        self.iterations = iterations
        self.tolerance = tolerance
        self.spherical = spherical
        self.seed = seed

    @torch.no_grad()
    def fit(
        self,
        known: PrototypeMemory,
        samples: Tensor | Sequence[Tensor],
        *,
        starts: Tensor | None = None,
    ) -> Clustering:
        """Find categories.

        Args:
            known: statistics of the known classes; may be empty.
            samples: ``(N, D)`` unlabelled features, or those of each client. Distances are in their
                precision, of half precision in single.
            starts: ``(K - C, W)`` centres of the categories that are new, for one run without
                drawing; by default they are drawn from the samples (of all clients together:
                who may not see them gives starts).

        Raises:
            ValueError: there are fewer categories than known classes, more new ones than samples,
                or shapes do not fit.
            OverflowError: distances are not exact in fixed point.
        """
        new = self.categories - len(known)
        if new < 0:
            raise ValueError(
                f"categories={self.categories}: expected at least the {len(known)} known classes"
            )
        plain, parts = _mapped(known, [samples] if isinstance(samples, Tensor) else samples)
        if new > (most := sum(map(len, parts))):
            raise ValueError(
                f"categories={self.categories}: expected at most {len(known) + most}, the "
                f"{len(known)} known classes and one category a sample without a label"
            )
        if starts is not None:
            if starts.shape != (new, plain.width):
                raise ValueError(
                    f"starts have shape {tuple(starts.shape)}: expected ({new}, {plain.width}), "
                    "one for each category that is not known"
                )
            return self._run(plain, parts, self._centres(plain, starts))
        uniform = np.random.RandomState(self.seed).random_sample
        everything = torch.cat(parts)
        found = (
            self._run(plain, parts, self._drawn(plain, everything, uniform))
            for _ in range(self.restarts if new else 1)
        )
        return min(found, key=lambda each: each.inertia)

    def _drawn(self, known: PrototypeMemory, samples: Tensor, uniform: Uniform) -> Centres:
        so_far = self._centres(known, known.sums[:0]).points
        number = self.categories - len(known)
        return self._centres(known, plus_plus(samples, number, uniform, so_far))

    def _centres(self, known: PrototypeMemory, new: Tensor) -> Centres:
        """Class means, and new centres under the least ids that are free."""
        taken = set(known.classes.tolist())
        ids = islice((i for i in count() if i not in taken), len(new))
        return Centres.sorted(
            torch.cat([known.classes, torch.tensor(list(ids), dtype=torch.int64)]),
            torch.cat([known.means, new.to(torch.float64)]),
            known.step if known.exact else None,
            spherical=self.spherical,
        )

    def _run(self, known: PrototypeMemory, parts: Sequence[Tensor], centres: Centres) -> Clustering:
        best: Clustering | None = None
        for done in range(1, self.iterations + 1):
            total = sum(centres.share(part) for part in parts)
            assert isinstance(total, Share)
            moved = centres.moved(known.at_level("mean") + total.memory)
            inertia = _unit_of(total.squares, known) + _labelled_inertia(known, centres)
            if best is None or inertia < best.inertia:
                best = Clustering(moved, total.memory, inertia, centres, done)
            shift = float((moved.points - centres.points).norm(dim=1).sum()) ** 2
            centres = moved
            if shift <= self.tolerance:
                break
        assert best is not None
        return best


def _mapped(
    known: PrototypeMemory, parts: Sequence[Tensor]
) -> tuple[PrototypeMemory, list[Tensor]]:
    """Statistics and samples under the map of the statistics, from where there is no map."""
    plain = PrototypeMemory(known.width, known.level, exact=known.exact, step=known.step)
    plain = PrototypeMemory.from_parts(plain, known.parts())
    return plain, [at_least_single(known.feature_map(part)) for part in parts]


def _unit_of(squares: float, known: PrototypeMemory) -> float:
    return squares * known.step**2 if known.exact else squares


def _labelled_inertia(known: PrototypeMemory, centres: Centres) -> float:
    """``sum_k n_k |c_k - mu_k|^2``, and the scatter where it is kept."""
    if not len(known):
        return 0.0
    own = centres.points[torch.searchsorted(centres.ids, known.classes)]
    moved = float((known.counts * (own - known.means).square().sum(1)).sum())
    return moved + _scatter(known)


def _scatter(known: PrototypeMemory) -> float:
    if known.level == "mean":
        return 0.0
    return float(known.squares.sum() - (known.sums * known.means).sum())
