"""Heads whose logits can be computed for some of the classes alone."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator

from torch import Tensor

from protocl.heads.base import Head
from protocl.heads.queries import Prepare
from protocl.heads.ranking import ScoreBlock, slices
from protocl.tracing import exporting

_ALIGNED = 64
"""Columns of a block are a multiple of this: matrix products run best on whole tiles."""


class ChunkedHead(Head):
    """A head that computes blocks of logits ``(n, c)``, each within :attr:`Head.chunk_bytes`.

    A subclass implements :meth:`_queries` and :meth:`_scores` in place of ``_logits``. All logits
    come from the same blocks, so :meth:`Head.topk` ranks the very numbers that ``forward`` gives.
    """

    @abstractmethod
    def _queries(self, features: Tensor) -> Tensor:
        """What is compared with the classes, ``(N, W)`` in ``self.dtype``, of mapped samples in it.

        Where :attr:`Head.keeps_digits` is set they are as precise as they came.
        """

    @abstractmethod
    def _scores(self, queries: Tensor, chosen: slice, out: Tensor) -> None:
        """Write the logits of the classes in ``chosen`` to ``out`` ``(N, c)``."""

    def _logits(self, features: Tensor) -> Tensor:
        if exporting():
            return self._one_block(features)
        shape = len(features), len(self._classes)
        logits = None
        for block in self._blocks(features, self._taken):
            if block.scores.shape == shape:
                return block.scores
            # Writing products straight into strided slices would round them differently.
            logits = block.scores.new_empty(shape) if logits is None else logits
            logits[block.rows, block.columns] = block.scores
        return features.new_empty(shape, dtype=self.dtype) if logits is None else logits

    def _one_block(self, features: Tensor) -> Tensor:
        queries = self._queries(features)
        logits = queries.new_empty(queries.shape[0], self._classes.shape[0])
        self._scores(queries, slice(0, logits.shape[1]), logits)
        return logits

    def _bands(self, samples: int) -> list[slice]:
        return self._grid(samples)[0]

    def _blocks(self, samples: Tensor, prepare: Prepare) -> Iterator[ScoreBlock]:
        bands, width = self._grid(len(samples))
        room = None
        for rows in bands:
            queries = self._queries(prepare(samples[rows]))
            if room is None:  # the first band is the longest
                room = queries.new_empty(len(queries) * width)
            for columns in slices(len(self._classes), width):
                shape = len(queries), columns.stop - columns.start
                block = room[: math.prod(shape)].view(shape)
                self._scores(queries, columns, block)
                yield ScoreBlock(rows, columns, block)

    def _grid(self, samples: int) -> tuple[list[slice], int]:
        """Bands of rows, and the number of columns of a block."""
        elements = max(1, self.chunk_bytes // self.dtype.itemsize)
        side = math.isqrt(elements)
        width = min(len(self._classes), max(1, side // _ALIGNED * _ALIGNED or side))
        return list(slices(samples, max(1, elements // width))), width
