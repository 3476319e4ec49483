"""The way of samples into a head: through the map of its statistics, some rows at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from protocl.heads.ranking import ScoreBlock, slices
from protocl.memory.buffers import FollowsDevice
from protocl.memory.feature_maps import FeatureMap, map_for
from protocl.tracing import exporting

Prepare = Callable[[Tensor], Tensor]
"""Brings some rows of samples under the map of the statistics."""


class MappedQueries(FollowsDevice):
    """What a head does with samples before and around :meth:`_logits`.

    Args:
        dtype: see :class:`.Head`.
        map: see :class:`.Head`.
    """

    chunk_bytes: int = 8 * 2**20
    keeps_digits: ClassVar[bool] = False
    """Whether :meth:`_logits` takes features as precise as they came, and casts them itself."""
    _classes: Tensor

    def __init__(self, dtype: torch.dtype, map: FeatureMap | str | None) -> None:
        super().__init__()
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype={dtype!r}: expected torch.float32 or torch.float64")
        if not isinstance(map, FeatureMap | str | None):
            raise TypeError(f"map={map!r}: expected a FeatureMap, the name of one, or None")
        self.dtype = dtype
        self.map = map
        self._made: tuple[int, FeatureMap] | None = None
        self._under: FeatureMap | None = None

    def feature_map(self, feature_dim: int) -> FeatureMap:
        """The map under which the memory must be summed, and through which queries go.

        Raises:
            ConfigError: ``map`` names none, or its settings do not fit.
        """
        if not isinstance(self.map, str):
            return FeatureMap() if self.map is None else self.map
        if self._made is None or self._made[0] != feature_dim:
            made = map_for(self.map, feature_dim, seed=getattr(self, "seed", 0))
            self._made = feature_dim, made
        return self._made[1]

    def mapped_logits(self, mapped: Tensor) -> Tensor:
        """Logits ``(N, C)`` of samples ``(N, W)`` that are under the map already, or near it."""
        return self._answers(mapped, self._in_range)

    # -- for heads --------------------------------------------------------------------------

    @abstractmethod
    def _logits(self, features: Tensor) -> Tensor:
        """Logits ``(N, C)`` of samples ``(N, W)`` under the map of the statistics.

        They come in ``self.dtype``, or as :attr:`keeps_digits` says.
        """

    def _taken(self, features: Tensor) -> Tensor:
        """Features in the precision in which :meth:`_logits` takes them."""
        if not self.keeps_digits:
            return features.to(self.dtype)
        wide = features if features.is_floating_point() else features.to(torch.float64)
        return wide.to(torch.promote_types(wide.dtype, self.dtype))

    def _go_under(self, memory_map: FeatureMap) -> None:
        """Let queries go through the map of the statistics that the head is fitted to."""
        # The identity is left out: calling it would cost more than it does.
        self._under = None if memory_map.spec == FeatureMap.spec else memory_map

    def _mapped(self, features: Tensor) -> Tensor:
        """Samples ``(N, W)`` under the map of the statistics, of features ``(N, D)``."""
        taken = self._taken(features)
        return taken if self._under is None else self._under(taken)

    def _in_range(self, mapped: Tensor) -> Tensor:
        """Samples as the map could give them, of ``mapped`` ``(N, W)`` that are under it."""
        return self._taken(mapped if self._under is None else self._under.in_range(mapped))

    def _answers(self, samples: Tensor, prepare: Prepare) -> Tensor:
        """Logits ``(N, C)``; some rows at a time where the map may make them wider."""
        if self._under is None or exporting() or len(samples) == 0:
            return self._logits(prepare(samples))
        parts = [self._logits(prepare(samples[rows])) for rows in self._bands(len(samples))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _bands(self, samples: int) -> list[slice]:
        """Rows for which all logits are computed at once."""
        rows = max(1, self.chunk_bytes // (len(self._classes) * self.dtype.itemsize))
        return list(slices(samples, rows))

    def _blocks(self, samples: Tensor, prepare: Prepare) -> Iterator[ScoreBlock]:
        """Logits in blocks, by rows and then by columns; here all classes of some rows."""
        columns = slice(0, len(self._classes))
        for rows in self._bands(len(samples)):
            yield ScoreBlock(rows, columns, self._logits(prepare(samples[rows])))

    def _require_no_map(self, other: str, instead: str) -> None:
        """Refuse a ``map`` beside another setting that is one."""
        if self.map is not None:
            raise ValueError(f"{other} is a map itself, beside map={self.map!r}: give {instead}")
