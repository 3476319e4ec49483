"""Heads that move features to the middle of the class means before digits are cast away."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from protocl.heads.blockwise import ChunkedHead


class CentredHead(ChunkedHead):
    """A head whose parameters and queries are taken relative to one point, the centre.

    A feature of 100,000 +- 1 has three digits left for its deviation in float32, and a product
    with weights has none. Relative to the middle of the class means it has all of them. A subclass
    calls :meth:`_move` in ``_fit``; :meth:`_queries` are then moved alike.
    """

    keeps_digits: ClassVar[bool] = True
    _centre: Tensor

    def _move(self, means: Tensor) -> Tensor:
        """Make the middle of ``means`` ``(C, W)`` float64 the centre; means relative to it.

        The centre is rounded to the head's precision first, so that what is subtracted from
        features in that precision is exactly what was subtracted from the means.
        """
        self._set(_centre=means.mean(0))
        return means - self._centre

    def _moved(self, mapped: Tensor) -> Tensor:
        """Samples under the map relative to the centre, in the head's precision."""
        return (mapped - self._centre).to(self.dtype)

    def _queries(self, features: Tensor) -> Tensor:
        return self._moved(features)
