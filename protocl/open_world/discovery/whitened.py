"""The space in which samples of one class scatter alike in every direction."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from protocl.heads.covariance.shrinkage import or_euclidean, whitening
from protocl.memory import PrototypeMemory
from protocl.memory.estimates.shrinkage import shrink_towards_identity
from protocl.memory.feature_maps import FeatureMap, digest, unit
from protocl.memory.precision import in_full_precision


class Whitened(FeatureMap):
    """``A^T (f - m)`` under the within-class covariance of a memory, at unit length by default.

    At unit length it is not linear, and it changes with the memory behind: statistics under it
    do not merge with those under another, which :attr:`spec`, a hash of ``A`` and ``m``, sees to.

    Args:
        middle: ``(W,)``, ``m``.
        matrix: ``(W, W)``, ``A``.
        before: map that comes first.
        unit_length: divide by the norm.

    Example:
        >>> samples = torch.tensor([[0.0, 10.0], [2.0, 11.0], [4.0, 10.0], [6.0, 11.0]])
        >>> memory = PrototypeMemory(2, "shared").update(samples, torch.tensor([0, 0, 1, 1]))
        >>> map = Whitened.of(memory, shrinkage=0.5)
        >>> map(samples).norm(dim=1)
        tensor([1., 1., 1., 1.])
    """

    _middle: Tensor
    _matrix: Tensor

    def __init__(
        self,
        middle: Tensor,
        matrix: Tensor,
        before: FeatureMap | None = None,
        *,
        unit_length: bool = True,
    ) -> None:
        super().__init__()
        self.register_buffer("_middle", middle.to(torch.float64), persistent=False)
        self.register_buffer("_matrix", matrix.to(torch.float64), persistent=False)
        self.before = before or FeatureMap()
        self.unit_length = unit_length
        found = digest(self._middle, self._matrix)
        length = "unit" if unit_length else "linear"
        self.spec = f"whitened:{self.before.spec}:{length}:{found}"

    @classmethod
    def of(
        cls, memory: PrototypeMemory, shrinkage: float = 0.1, *, unit_length: bool = True
    ) -> Self:
        """The space of a memory of level ``shared`` or ``full``, whose own map comes first.

        Args:
            memory: statistics of known classes.
            shrinkage: weight of the scaled identity in the covariance.
            unit_length: see above.

        Raises:
            ValueError: no class has two samples, or the level keeps no second moments.

        Warns:
            PrecisionWarning: no class has samples that differ: nothing is whitened.
        """
        freedom = memory.total - len(memory)
        if freedom < 1 or not memory.provides("shared"):
            raise ValueError(
                f"{memory.total} samples of {len(memory)} classes at level '{memory.level}' do not "
                "tell how classes scatter: expected level 'shared' or 'full', and two samples of a "
                "class or more"
            )
        shared = memory if memory.level == "shared" else memory.at_level("shared")
        within = or_euclidean(shared.scatter() / freedom, memory.means)
        covariance = shrink_towards_identity(within, shrinkage, scaled=True)
        matrix = whitening(covariance[None])[0].T
        middle = memory.sums.sum(0) / memory.total
        return cls(middle, matrix, memory.feature_map, unit_length=unit_length)

    def statistics(self, memory: PrototypeMemory) -> PrototypeMemory:
        """Counts and sums of ``memory`` in this space, of level ``mean`` and without a map.

        Raises:
            ValueError: the space is at unit length, so that sums do not follow from sums.
        """
        if self.unit_length:
            raise ValueError("sums at unit length do not follow from sums: use unit_length=False")
        counts = memory.counts
        sums = (memory.sums - counts[:, None] * self._middle) @ self._matrix
        return PrototypeMemory.from_statistics(
            PrototypeMemory(memory.width), classes=memory.classes, counts=counts, sums=sums
        )

    def width(self, feature_dim: int) -> int:
        return self.before.width(feature_dim)

    @in_full_precision
    def forward(self, features: Tensor) -> Tensor:
        mapped = self.before(features)
        moved = (mapped - self._middle.to(mapped.dtype)) @ self._matrix.to(mapped.dtype)
        return unit(moved) if self.unit_length else moved
