"""The evidence that rows are one category or two, each with a covariance of its own.

Source: Zhao, Wen & Han, "Learning semi-supervised Gaussian mixture models for generalized category
discovery", ICCV 2023, section 3.2 (GPC); the conjugate prior of mean and covariance as in Murphy,
"Machine learning: a probabilistic perspective", 2012, section 4.6.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory


@dataclass(frozen=True, eq=False)
class InverseWishart:
    """A normal-inverse-Wishart prior of the Gaussians of categories.

    All that it tells is a function of counts, sums and second moments, level ``full``.

    Attributes:
        mean: ``(W,)`` of the categories' means.
        strength: samples that this mean counts for.
        freedom: degrees of freedom of the covariance, above ``W - 1``.
        scale: ``(W, W)``; the covariance is about this over ``freedom``.
        concentration: of categories: with more of it there are more of them.

    Example:
        >>> samples = torch.tensor([[0.0], [0.1], [-0.1], [9.0], [9.1], [8.9]])
        >>> rows = PrototypeMemory(1, "full").update(samples, torch.tensor([0, 0, 1, 2, 2, 2]))
        >>> prior = InverseWishart.of(rows)
        >>> [bool(prior.split_evidence(rows.subset([a, b])) > 0) for a, b in [(0, 1), (0, 2)]]
        [False, True]
    """

    mean: Tensor
    strength: float
    freedom: float
    scale: Tensor
    concentration: float = 1.0

    @classmethod
    def of(
        cls, memory: PrototypeMemory, *, strength: float = 1e-4, scale: float = 5e-3
    ) -> InverseWishart:
        """The prior of GPC: around the mean of all samples, with ``W + 1`` degrees of freedom.

        Raises:
            ValueError: the memory is empty.
        """
        if memory.total == 0:
            raise ValueError("the memory is empty, so that there is no mean to put a prior around")
        width = memory.width
        mean = memory.sums.sum(0) / memory.total
        return cls(mean, strength, width + 1.0, scale * torch.eye(width, dtype=torch.float64))

    def posterior_means(self, memory: PrototypeMemory) -> Tensor:
        """``(C, W)`` most probable means of the rows."""
        return (memory.sums + self.strength * self.mean) / (memory.counts[:, None] + self.strength)

    def posterior_covariances(self, memory: PrototypeMemory) -> Tensor:
        """``(C, W, W)`` most probable covariances of the rows."""
        counts = memory.counts + (self.freedom + memory.width + 2)
        return self._scales(memory) / counts[:, None, None]

    def log_evidence(self, memory: PrototypeMemory) -> Tensor:
        """``(C,)`` log density of all samples of each row, its Gaussian unknown.

        Raises:
            ValueError: the level of the memory is not ``full``.
        """
        n, width = memory.counts.to(torch.float64), memory.width
        strength, freedom = n + self.strength, n + self.freedom
        return (
            -n * width / 2 * math.log(math.pi)
            + torch.special.multigammaln(freedom / 2, width)
            - torch.special.multigammaln(freedom.new_tensor(self.freedom / 2), width)
            + self.freedom / 2 * torch.logdet(self.scale)
            - freedom / 2 * torch.logdet(self._scales(memory))
            + width / 2 * (math.log(self.strength) - strength.log())
        )

    def split_evidence(self, halves: PrototypeMemory) -> Tensor:
        """Log odds that two rows are two categories; what it lacks to 0 speaks for one.

        Args:
            halves: two rows of level ``full``.

        Raises:
            ValueError: there are not two rows.
        """
        if len(halves) != 2:
            raise ValueError(f"{len(halves)} rows: expected the two halves of a split")
        whole = joined(halves)
        parts = torch.lgamma(halves.counts.double()) + self.log_evidence(halves)
        one = torch.lgamma(whole.counts.double()) + self.log_evidence(whole)
        return math.log(self.concentration) + parts.sum() - one[0]

    def _scales(self, memory: PrototypeMemory) -> Tensor:
        """``Psi_n``, ``(C, W, W)``."""
        if memory.level != "full":
            raise ValueError(
                f"the memory has level '{memory.level}': expected 'full', which keeps the scatter "
                "of each row"
            )
        n = memory.counts.to(torch.float64)[:, None, None]
        gaps = (memory.means - self.mean)[:, :, None]
        weights = self.strength * n / (self.strength + n)
        return self.scale + memory.scatter() + weights * gaps @ gaps.mT


def joined(rows: PrototypeMemory) -> PrototypeMemory:
    """All rows as one, under the id of the first."""
    total = rows.empty_like()
    for class_id in rows.classes.tolist():
        total.merge(rows.subset(class_id).relabelled(rows.classes[:1]))
    return total
