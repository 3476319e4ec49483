"""What is derived from a memory, and derived anew when that memory changes."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor

from protocl.errors import NotFittedError
from protocl.heads.settings import Settings
from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level, require_tensor
from protocl.memory.buffers import FollowsDevice
from protocl.memory.feature_maps import FeatureMap
from protocl.memory.summation import all_finite


class Fitted(Settings, FollowsDevice):
    """A pure function of a memory's statistics, of any map; computed in float64.

    As in a head, what is derived lies in buffers outside the ``state_dict``: the memory is the
    state. Features go through the map of the memory first.

    Attributes:
        required_level: least level of the memory.
        least_classes: least number of classes in it.
    """

    required_level: ClassVar[Level] = "mean"
    least_classes: ClassVar[int] = 1

    def __init__(self) -> None:
        super().__init__()
        self._revision: str | None = None
        self._behind = ""
        self._feature_dim = 0
        self._map = FeatureMap()

    @torch.no_grad()
    def fit(self, memory: PrototypeMemory) -> Self:
        """Derive what is needed from ``memory``; does nothing if it has not changed.

        Raises:
            TypeError: it is no memory.
            ValueError: it lacks classes, samples or statistics that this needs.
        """
        if not isinstance(memory, PrototypeMemory):
            raise TypeError(
                f"{type(self).__name__}.fit takes a PrototypeMemory, got a {type(memory).__name__}"
            )
        if (behind := self.behind(memory)) != self._behind:
            if lacking := self.lacks(memory):
                raise ValueError(f"{type(self).__name__}.fit: {lacking}")
            self._fit(memory)
            self._map, self._feature_dim = memory.feature_map, memory.feature_dim
            self._revision, self._behind = memory.revision, behind
        return self

    def behind(self, memory: PrototypeMemory) -> str:
        """What the answers follow from, as a revision: another one is fitted anew."""
        return memory.revision

    def lacks(self, memory: PrototypeMemory) -> str:
        """What ``memory`` lacks, as a sentence that says what to do; empty if it serves."""
        if len(memory) < self.least_classes:
            return (
                f"the memory has {len(memory)} classes, {self.least_classes} or more are needed; "
                "update it with samples of others first"
            )
        if not memory.provides(self.required_level):
            return (
                f"a memory of level '{self.required_level}' is needed, got '{memory.level}'; "
                f"make it with PrototypeMemory(feature_dim, level='{self.required_level}')"
            )
        if self.required_level != "mean" and not scatters(memory):
            return (
                "no class has two samples that differ, so that nothing tells how classes scatter; "
                "update the memory with more samples"
            )
        return ""

    @property
    def revision(self) -> str:
        """Of the memory that this is fitted to (:attr:`protocl.PrototypeMemory.revision`).

        Raises:
            NotFittedError: :meth:`fit` has not been called.
        """
        if self._revision is None:
            raise NotFittedError(f"{type(self).__name__} is not fitted: call fit(memory) first")
        return self._revision

    # -- for subclasses ---------------------------------------------------------------------

    @abstractmethod
    def _fit(self, memory: PrototypeMemory) -> None:
        """Set the buffers that the answers are made of."""

    def _set(self, **buffers: Tensor) -> None:
        """Keep derived tensors."""
        for name, value in buffers.items():
            self.register_buffer(name, value.contiguous(), persistent=False)

    def _mapped(self, features: Tensor) -> Tensor:
        """Samples ``(N, W)`` float64 under the map of the memory, of features ``(N, D)``.

        Raises:
            NotFittedError: :meth:`fit` has not been called.
            TypeError: the features are no tensor.
            ValueError: their shape does not fit, or a feature is NaN or infinite.
        """
        assert self.revision
        require_tensor("features", features)
        if features.ndim != 2 or features.shape[1] != self._feature_dim:
            raise ValueError(
                f"features have shape {tuple(features.shape)}: expected (N, {self._feature_dim}), "
                "as in the memory"
            )
        mapped = self._map(features.double())
        if not all_finite(mapped):
            raise ValueError("features hold NaN or infinite values: expected finite numbers")
        return mapped


_CLEAR = 1e-9
"""Share of a sum of squares above which scatter is none of its rounding."""


def as_shared(memory: PrototypeMemory) -> PrototypeMemory:
    """The memory itself if its level is ``shared``, else a copy reduced to it."""
    return memory if memory.level == "shared" else memory.at_level("shared")


def scatters(memory: PrototypeMemory) -> bool:
    """Whether some class of a memory of level ``shared`` or ``full`` has samples that differ."""
    if memory.total <= len(memory):
        return False
    squares, own = memory.squares, memory.sums * memory.means
    left = squares - (own.sum(0) if squares.ndim == 1 else own)
    if bool((left > _CLEAR * squares).any()):
        return True
    return bool((as_shared(memory).scatter().diagonal() > 0).any())
