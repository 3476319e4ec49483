"""What of a sample decided between two classes: exact terms of the head's own form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protocl.heads.base import Head
from protocl.memory import PrototypeMemory

_AT_ONCE = 512
"""Points that the head is asked about at once."""


@dataclass(frozen=True, eq=False)
class Contributions:
    """A decision as a sum over features: ``base + sum of values = gap``.

    Attributes:
        values: ``(W,)`` float64; a feature above 0 spoke for the winner.
        base: logit of the winner less that of its rival at the rival's prototype.
        gap: the same at the sample; above 0 the winner won.
    """

    values: Tensor
    base: float
    gap: float

    @property
    def remainder(self) -> float:
        """What the sum misses: rounding, and what no form of second degree has."""
        return self.gap - self.base - float(self.values.sum())

    def largest(self, number: int) -> list[tuple[int, float]]:
        """Features of the largest magnitude, with what they gave."""
        order = self.values.abs().argsort(descending=True, stable=True)[:number]
        return [(int(feature), float(self.values[feature])) for feature in order]


@torch.no_grad()
def contributions(
    head: Head, memory: PrototypeMemory, sample: Tensor, winner: int, rival: int
) -> Contributions:
    """What each feature, in which the sample is unlike the rival's prototype, gave to the decision.

    Along the way ``r -> x`` from the rival's prototype to the sample, a form ``g`` of first or
    second degree (Euclidean, Mahalanobis, linear discriminant, ridge) changes by
    ``sum_d [g(m + h_d) - g(m - h_d)]``, with the middle ``m`` and half the way ``h_d`` in feature
    ``d`` alone. This is exact, and asks nothing of the head but its logits. A head that divides
    queries by their norm is of no such form: :attr:`.Contributions.remainder` tells how far it is.

    Args:
        head: fitted to ``memory``; with ``dtype=torch.float64`` terms have more digits. It is asked
            ``2 W`` times.
        memory: the statistics.
        sample: ``(D,)``.
        winner: class id.
        rival: class id.

    Raises:
        ValueError: the head or the memory does not know a class, or the sample is no vector.

    Example:
        >>> from protocl.heads import NearestMean
        >>> head = NearestMean(dtype=torch.float64)
        >>> x = torch.tensor([[0.0, 0.0], [4.0, 1.0]])
        >>> memory = head.new_memory(2).update(x, torch.tensor([3, 7]))
        >>> found = contributions(head.fit(memory), memory, torch.tensor([3.0, 0.0]), 7, 3)
        >>> found.values.tolist(), found.base, found.gap
        ([24.0, 0.0], -17.0, 7.0)
    """
    if sample.ndim != 1:
        raise ValueError(f"the sample has shape {tuple(sample.shape)}: expected one vector (D,)")
    columns = torch.tensor([_place(head.classes, class_id) for class_id in (winner, rival)])
    start = memory.means_at(torch.tensor([_place(memory.classes, rival)]))[0]
    end = memory.feature_map(sample.double()[None])[0]

    def gaps(points: Tensor) -> Tensor:
        parts = [head.mapped_logits(part)[:, columns] for part in points.split(_AT_ONCE)]
        logits = torch.cat(parts).double()
        return logits[:, 0] - logits[:, 1]

    middle, half = (start + end) / 2, torch.diag((end - start) / 2)
    values = gaps(middle + half) - gaps(middle - half)
    base, gap = gaps(torch.stack([start, end])).tolist()
    return Contributions(values, base, gap)


def _place(classes: Tensor, class_id: int) -> int:
    places = (classes == class_id).nonzero()
    if not len(places):
        raise ValueError(f"class {class_id} is not known: expected one of {classes.tolist()[:20]}")
    return int(places[0, 0])
