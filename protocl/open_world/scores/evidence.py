"""The evidence ratio as a score."""

from __future__ import annotations

from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.open_world.evidence import TwoCovariance
from protocl.open_world.scores.base import Score


class Evidence(Score):
    """Log odds that a sample is of its likeliest known class, against a class of its own.

    Args:
        shrinkage, base: see :class:`.TwoCovariance`.

    Source: :class:`.TwoCovariance`.

    Example:
        >>> features = torch.tensor([[0.0, 1], [1, 0], [9, 0], [8, 1], [0, 8], [1, 9]])
        >>> memory = PrototypeMemory(2, level="shared").update(
        ...     features, torch.tensor([4, 4, 7, 7, 9, 9]))
        >>> Evidence(shrinkage=0.0).fit(memory)(torch.tensor([[0.5, 0.5], [5.0, 4.0]])) > 0
        tensor([ True, False])
    """

    def __init__(self, shrinkage: float = 0.3, *, base: PrototypeMemory | None = None) -> None:
        super().__init__()
        self.ratio = TwoCovariance(shrinkage, base=base)

    def behind(self, memory: PrototypeMemory) -> str:
        """See :class:`.Fitted`."""
        return self.ratio.behind(memory)

    def lacks(self, memory: PrototypeMemory) -> str:
        """See :class:`.Fitted`."""
        return self.ratio.lacks(memory)

    def _fit(self, memory: PrototypeMemory) -> None:
        self.ratio.fit(memory)

    def forward(self, features: Tensor) -> Tensor:
        """See :class:`.Score`."""
        return self.ratio.known(features)

    def _known(self, mapped: Tensor) -> Tensor:
        return self.ratio.known_of(mapped)
