"""The two covariances of a memory: of samples within categories, and of the categories' means."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from protocl.errors import PrecisionWarning
from protocl.heads.covariance.shrinkage import whitening
from protocl.memory import PrototypeMemory
from protocl.memory.estimates.shrinkage import shrink_towards_identity

FLOOR = 1e-3
"""Least between-class variance, in units of the shrunk within-class one, of a kept direction."""


@dataclass(frozen=True)
class ClassSums:
    """What the two covariances need of one or more memories.

    Attributes:
        means: ``(C, W)`` float64 class means.
        counts: ``(C,)`` float64 numbers of samples.
        scatter: ``(W, W)`` float64 pooled scatter within classes.
    """

    means: Tensor
    counts: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, memory: PrototypeMemory) -> ClassSums:
        """Of a memory of level ``shared`` or ``full``."""
        shared = memory if memory.level == "shared" else memory.at_level("shared")
        return cls(memory.means, memory.counts.double(), shared.scatter())

    def beside(self, other: ClassSums) -> ClassSums:
        """Of the classes of both, none of which is taken for one of the other's."""
        return ClassSums(
            torch.cat([self.means, other.means]),
            torch.cat([self.counts, other.counts]),
            self.scatter + other.scatter,
        )

    @property
    def mean(self) -> Tensor:
        """``(W,)`` mean of all samples."""
        return (self.counts @ self.means) / self.counts.sum()

    def within(self) -> Tensor:
        """Covariance ``(W, W)`` of samples around their class means, divisor ``N - C``."""
        return self.scatter / (self.counts.sum() - len(self.counts))

    def between(self, within: Tensor) -> Tensor:
        """Covariance ``(W, W)`` of the true class means, without what sampling adds to it.

        Args:
            within: ``(W, W)``; its share of the scatter of ``C`` means is one over the harmonic
                mean of the counts.
        """
        around = self.means - self.means.mean(0)
        spread = around.T @ around / (len(self.means) - 1)
        return spread - within * (1 / self.counts).mean()


def directions(sums: ClassSums, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Directions in which samples scatter with variance 1, and class means with variance ``b``.

    Args:
        sums: of two classes or more.
        shrinkage: weight of the scaled identity in the covariance within classes.

    Returns:
        ``A`` ``(W, d)`` and ``b`` ``(d,)`` in descending order of what separates classes:
        ``A^T S_w A`` has a unit diagonal for the unshrunk ``S_w`` and ``A^T S_b A`` is
        ``diag(b)``. ``d`` is at most ``C - 1``.

    Warns:
        PrecisionWarning: class means differ by no more than their samples explain.
    """
    plain = sums.within()
    within = shrink_towards_identity(plain, shrinkage, scaled=True)
    half = whitening(within[None])[0]
    values, vectors = torch.linalg.eigh(half @ sums.between(within) @ half.T)
    kept = values.flip(0) > FLOOR
    kept[len(sums.means) - 1 :] = False
    axes, spread = (half.T @ vectors.flip(1))[:, kept], values.flip(0)[kept]
    variances = ((plain @ axes) * axes).sum(0)
    # Without scatter in a direction nothing says how sure it is: only shrinkage does.
    variances = torch.where(variances > 1e-12, variances, 1.0)
    if not len(spread):
        warnings.warn(
            f"the means of {len(sums.means)} classes differ by no more than the scatter of their "
            "samples: evidence is zero for everything; add classes, or give those that the "
            "backbone was trained on as base",
            PrecisionWarning,
            stacklevel=5,
        )
    return axes / variances.sqrt(), spread / variances
