"""Distance to the nearest class mean: the plainest score."""

from __future__ import annotations

from torch import Tensor

from protocl.heads.nearest_mean import NearestMean
from protocl.memory import PrototypeMemory
from protocl.open_world.scores.base import Score


class Distance(Score):
    """Minus the squared Euclidean distance to the nearest class mean.

    Example:
        >>> memory = PrototypeMemory(2).update(torch.eye(2), torch.tensor([4, 9]))
        >>> Distance().fit(memory)(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).tolist()
        [0.0, -1.0]
    """

    def _fit(self, memory: PrototypeMemory) -> None:
        self._nearest = NearestMean(map=memory.feature_map).fit(memory)

    def forward(self, features: Tensor) -> Tensor:
        """See :class:`.Score`; in the single precision of the nearest-mean head."""
        assert self.revision
        return self._nearest(features).amax(1)

    def _known(self, mapped: Tensor) -> Tensor:
        return self._nearest.mapped_logits(mapped).amax(1)
