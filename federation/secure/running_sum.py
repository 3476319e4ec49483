"""The sum over all rounds of a protected federation, and the memory behind it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from protocl.federation.privacy.release import (
    NoisyVector,
    PrivateRelease,
    PrivateSum,
    memory_of,
)
from protocl.federation.privacy.vector import StatisticsLayout
from protocl.memory.summation import overflows

Vector = NDArray[np.int64]


class RunningSum:
    """Adds up sums of vectors.

    Args:
        layout: of the vectors.
        release: clipping and noise; None for neither.

    Attributes:
        memory: what the sum stands for.
        total: ``(layout.size,)`` int64.
        noise: variance of the noise in it, in variances of a release.
    """

    def __init__(self, layout: StatisticsLayout, release: PrivateRelease | None) -> None:
        self.layout = layout
        self.release = release
        self.memory = layout.empty_memory()
        self.total: Vector = np.zeros(layout.size, dtype=np.int64)
        self.noise = 0.0

    def add(self, sums: Sequence[tuple[Vector, Fraction, int]]) -> None:
        """Add sums of vectors, with their noise shares and numbers of contributors.

        Raises:
            OverflowError: the sum exceeds 64 bits; nothing is added then.
            PrivacyError: they hold too little noise.
        """
        total, noise = self.total, self.noise
        if self.release is None:
            for vector, _, _ in sums:
                total = added(total, vector)
        else:
            private = PrivateSum(self.release)
            for vector, share, contributors in sums:
                private.add_total(NoisyVector(vector, self.layout.digest, share), contributors)
            total = added(total, private.finish())
            noise += private.noise_variance
        self.take_up(total, noise)

    def take_up(self, total: Vector, noise: float) -> None:
        """Have ``total`` for the sum, in which there is the noise of ``noise`` releases."""
        self.memory = (
            self.layout.unpack(total)
            if self.release is None
            else memory_of(self.release, total, noise)
        )
        self.total, self.noise = total, noise


def added(total: Vector, vector: Vector) -> Vector:
    """The sum of both.

    Raises:
        OverflowError: it exceeds 64 bits.
    """
    if overflows(torch.from_numpy(total), torch.from_numpy(vector)):
        raise OverflowError("the sum over all rounds exceeds 64 bits; use a larger step")
    return total + vector
