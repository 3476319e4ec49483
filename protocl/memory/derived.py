"""What follows from sums by class: means, second moments, scatter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from protocl.memory.additive import AdditiveStatistics
from protocl.memory.limits.scatter import clear_rounding_, offset_ratios
from protocl.memory.summation import words_as_float
from protocl.memory.symmetric import diagonal_places, unpack_triangles

if TYPE_CHECKING:
    from protocl.memory.estimates.gaussians import Covariance
    from protocl.memory.memory import PrototypeMemory

_PIECE = 1 << 17
"""Elements of a block of means: 1 MiB."""


class DerivedStatistics(AdditiveStatistics):
    """Sums by class that can be read as users think of them."""

    @property
    def classes(self) -> Tensor:
        """``(C,)`` int64 class ids, ascending."""
        return self.class_ids.clone()

    @property
    def counts(self) -> Tensor:
        """``(C,)`` int64 number of samples of each class."""
        return self.count.clone()

    @property
    def total(self) -> int:
        """Number of samples of all classes."""
        return int(self.count.sum())

    @property
    def sums(self) -> Tensor:
        """``(C, W)`` float64 sums of the mapped features."""
        return self._value("sum")

    @property
    def means(self) -> Tensor:
        """``(C, W)`` float64 class means of the mapped features: the prototypes."""
        return self.sums / self.count[:, None]

    def means_at(self, rows: Tensor) -> Tensor:
        """:attr:`means` ``(n, W)`` of some rows ``(n,)`` of :attr:`classes`."""
        return self._value("sum", rows) / self.count[rows, None]

    def mean_blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """:attr:`means` of a few classes at a time: rows and ``(n, W)`` float64.

        Temporaries stay in the processor's cache, whatever the number of classes.
        """
        count = self.count
        step = max(1, _PIECE // self.width)
        for start in range(0, len(count), step):
            rows = slice(start, min(start + step, len(count)))
            yield rows, self._value("sum", rows) / count[rows, None]

    @property
    def unmapped_means(self) -> Tensor:
        """``(C, D)`` float64 class means of the features before the map.

        Raises:
            ValueError: the memory was made without ``raw_means=True`` and has a map.
        """
        if self.raw_means:
            return self._value("raw") / self.count[:, None]
        if self.feature_map.spec != "identity":
            raise ValueError(
                "means before the feature map were not kept; make the memory with raw_means=True"
            )
        return self.means

    @property
    def second_moment(self) -> Tensor:
        """Sums of squares ``(C, W)``, or of outer products ``(W, W)`` or ``(C, W, W)``, float64.

        Of level ``full`` it takes twice what is stored; :meth:`subset` gives that of some classes.

        Raises:
            ValueError: the level is ``mean``.
        """
        if self.level == "mean":
            raise ValueError("a memory of level 'mean' keeps no second moment; use another level")
        values = self._value("second")
        return values if self.level == "diagonal" else unpack_triangles(values, self.width)

    def scatter(self) -> Tensor:
        """Within-class scatter ``sum_i (f_i - mu_yi)(f_i - mu_yi)^T``, float64.

        Returns:
            ``(W, W)`` pooled over classes for level ``shared``, ``(C, W, W)`` for ``full``, and its
            diagonals ``(C, W)`` for ``diagonal``. Divide by the counts for covariances. It is zero
            for features that do not vary beyond the rounding of the sums.
        """
        second, means, counts = self.second_moment, self.means, self.count.to(torch.float64)
        if self.level == "diagonal":
            scatter = second - counts[:, None] * means**2
            return self._cleared(scatter, second, counts[:, None]).clamp_(min=0.0)
        if self.level == "shared":
            scatter = second - (means * counts[:, None]).T @ means
            return self._cleared(scatter, second.diagonal(), counts.sum())
        scatter = torch.baddbmm(second, (means * -counts[:, None])[:, :, None], means[:, None, :])
        return self._cleared(scatter, second.diagonal(dim1=1, dim2=2), counts[:, None])

    def _cleared(self, scatter: Tensor, squares: Tensor, samples: Tensor) -> Tensor:
        return clear_rounding_(scatter, squares, samples, bounded=self.keeps_rounding)

    @property
    def keeps_rounding(self) -> bool:
        """Whether second moments lose nothing, however many batches and memories are added."""
        return self.exact or self.moments == "pairs"

    def offset_ratios(self) -> Tensor:
        """``(W,)`` how many standard deviations within classes each feature is from the origin.

        See :func:`protocl.memory.limits.scatter.offset_ratios`; the level must not be ``mean``.
        """
        squares = self.squares if self.level == "shared" else self.squares.sum(0)
        scatter = squares - (self.sums * self.means).sum(0)
        bounded = self.keeps_rounding
        return offset_ratios(squares, self.means, scatter, self.count, bounded=bounded)

    def sample(
        self, n: int, *, seed: int = 0, covariance: Covariance = "auto", eps: float = 1e-4
    ) -> tuple[Tensor, Tensor]:
        """Draw ``n`` samples of each class from Gaussians with its mean and covariance.

        Equal statistics and an equal seed give equal samples.

        Args:
            n: samples of each class.
            seed: of the draws.
            covariance, eps: see :class:`.estimates.gaussians.ClassGaussians`.

        Returns:
            Mapped features ``(n C, W)`` float64, and class ids ``(n C,)`` int64 in ascending order.

        Raises:
            ValueError: the memory is empty, or knows no such covariances.
        """
        from protocl.memory.estimates.gaussians import ClassGaussians

        gaussians = ClassGaussians(cast("PrototypeMemory", self), covariance, eps)
        drawn = gaussians.draw(n, torch.Generator().manual_seed(seed))
        return drawn.flatten(0, 1), self.classes.repeat_interleave(n)

    @property
    def squares(self) -> Tensor:
        """Sums of each feature's squares, float64: ``(C, W)``, or ``(W,)`` for level ``shared``.

        Raises:
            ValueError: the level is ``mean``.
        """
        if self.level in ("mean", "diagonal"):
            return self.second_moment
        return self._value("second", (..., diagonal_places(self.width).to(self.device)))

    def _value(self, name: str, rows: Any = slice(None)) -> Tensor:
        """A sum in float64: both halves of the pair, or the fixed-point value in feature units.

        Args:
            name: of the sum.
            rows: which of it, as an index.
        """
        buffer, half = self._buffer(name)[rows], self._half(name)
        half = None if half is None else half[rows]
        if self.exact:
            return words_as_float(buffer, half) * self.forms[name].unit
        return buffer.clone() if half is None else buffer + half

    @property
    def nbytes(self) -> int:
        """Bytes that the statistics occupy."""
        return sum(buffer.nbytes for buffer in self.buffers(recurse=False))

    def __len__(self) -> int:
        return len(self.class_ids)

    def __bool__(self) -> bool:
        """Always true: an empty memory is still a memory."""
        return True

    def __contains__(self, class_id: object) -> bool:
        found: Tensor | bool = self.class_ids == class_id
        return isinstance(found, Tensor) and bool(found.any())

    def extra_repr(self) -> str:
        parts = [f"classes={len(self)}, samples={self.total}, feature_dim={self.feature_dim}"]
        parts += [f"level={self.level}", f"exact={self.exact}" if self.exact else ""]
        return ", ".join(part for part in parts if part)
