"""Class sums, and the leading eigenpairs of a second moment that is never formed: LoRanPAC."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Never, Self

import torch
from torch import Tensor

from protocl.errors import DataError
from protocl.memory.additive import AdditiveStatistics
from protocl.memory.batch import Level
from protocl.memory.buffers import outside_inference_mode
from protocl.memory.feature_maps import FeatureMap
from protocl.memory.kind import Layout, Moments
from protocl.memory.memory import PrototypeMemory
from protocl.memory.precision import without_autocast

_SHARED = frozenset({"factor", "error"})
_PIECE = 1 << 24
"""Elements of the mapped features that are factored at once: 128 MiB."""


@dataclass(frozen=True)
class LowRankLayout(Layout):
    """Tensors of class sums, and of eigenpairs that all classes share.

    Attributes:
        rank: the most eigenpairs.
    """

    rank: int

    @cached_property
    def shared(self) -> frozenset[str]:
        return super().shared | _SHARED

    @cached_property
    def empty(self) -> dict[str, tuple[int, ...]]:
        return {**super().empty, "factor": (0, self.width), "error": (1,)}

    @cached_property
    def numbers(self) -> tuple[int, int]:
        each, shared = super().numbers
        return each, shared + min(self.rank, self.width) * self.width + 1

    def require(self, tensors: Mapping[str, Tensor]) -> None:
        super().require(tensors)
        for name, size in (("factor", (-1, self.width)), ("error", (1,))):
            if name not in tensors:
                raise DataError(f"the statistics lack the array '{name}'")
            self._require_shared(name, tensors[name], size)

    def _require_shared(self, name: str, array: Tensor, size: tuple[int, ...]) -> None:
        rows = f"up to {self.rank}" if size[0] < 0 else str(size[0])
        fits = array.shape[1:] == size[1:] and array.ndim == len(size)
        fits = fits and len(array) <= (self.rank if size[0] < 0 else size[0])
        if not fits or array.dtype != torch.float64 or not bool(torch.isfinite(array).all()):
            raise DataError(
                f"array '{name}' is {tuple(array.shape)} {array.dtype}: expected {rows} rows of "
                f"{size[1:]} finite numbers in torch.float64"
            )


class LowRankMemory(PrototypeMemory):
    """Class sums, which are exact, and the leading eigenpairs of the second moment, an estimate.

    In place of ``G = sum h h^T`` of mapped features ``h`` a factor ``F`` ``(r, W)`` is kept, whose
    rows are eigenvectors times the roots of their eigenvalues. Each batch ``H`` is stacked below
    ``F``, and of the singular value decomposition of both the ``min(round(share N), rank)`` largest
    are kept for the ``N`` samples so far. What is dropped depends on where batches end:

    * With ``e`` the sum over all truncations of the largest eigenvalue that each has dropped
      (:attr:`error_bound`), ``0 <= G - F^T F <= e I``, whatever the order of batches and merges.
      ``e`` is 0 while nothing is dropped, and ``F^T F`` then is ``G`` but for rounding.
    * Merging stacks two factors; either order gives the same but for rounding, and the bounds add
      up. Nothing exact merges with it, since what is dropped once is not known again.
    * Nothing can be taken out of eigenpairs: :meth:`subtract` and :meth:`forget` refuse. A memory
      of level ``shared`` forgets.

    Its level is ``mean``: class sums are those of all samples, to which any head of that level can
    be fitted. ``16 C W + 8 r W`` bytes, where level ``shared`` takes ``8 W^2`` or twice that.

    Args:
        feature_dim: ``D``.
        rank: the most eigenpairs; 10,000 in the paper.
        share: eigenpairs kept, of the number of samples so far, above 0 and up to 1.
        feature_map, fingerprint: as for :class:`protocl.PrototypeMemory`.

    Raises:
        ValueError: ``rank`` or ``share`` is out of range.

    Example:
        >>> features = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> memory = LowRankMemory(2, rank=1).update(features, torch.tensor([7, 3]))
        >>> memory.second_moment.tolist(), memory.error_bound, memory.sums.tolist()
        ([[9.0, 0.0], [0.0, 0.0]], 1.0, [[0.0, 1.0], [3.0, 0.0]])

    Source: Peng et al., "LoRanPAC: low-rank random features and pre-trained models for bridging
    theory and practice in continual learning", ICLR 2025; merging and the bound are our own.
    """

    ordered: ClassVar[bool] = True
    _layout: LowRankLayout
    factor: Tensor
    error: Tensor

    def __init__(
        self,
        feature_dim: int,
        *,
        rank: int,
        share: float = 1.0,
        feature_map: FeatureMap | None = None,
        fingerprint: str | None = None,
    ) -> None:
        if isinstance(rank, bool) or not hasattr(rank, "__index__") or rank < 1:
            raise ValueError(f"rank={rank!r}: expected a whole number of eigenpairs, at least 1")
        if not 0 < share <= 1:
            raise ValueError(f"share={share}: expected a share of the samples, above 0 and up to 1")
        self.rank, self.share = rank, float(share)  # before the buffers, whose layout has them
        super().__init__(feature_dim, feature_map=feature_map, fingerprint=fingerprint)
        self.estimated = "eigenpairs of sums of products"

    # -- what is known ----------------------------------------------------------------------

    @property
    def values(self) -> Tensor:
        """``(r,)`` eigenvalues of the second moment, descending."""
        return self.factor.square().sum(1)

    @property
    def vectors(self) -> Tensor:
        """``(W, r)`` eigenvectors in columns."""
        return (self.factor / self.values.sqrt()[:, None]).T

    @property
    def error_bound(self) -> float:
        """The most that any direction of the second moment can lack; see the class."""
        return float(self.error)

    @property
    def second_moment(self) -> Tensor:
        """``F^T F`` ``(W, W)`` float64: at most that of all samples, and not much less."""
        return self.factor.T @ self.factor

    @property
    def squares(self) -> Tensor:
        """``(W,)`` the diagonal of :attr:`second_moment`."""
        return self.factor.square().sum(0)

    def offset_ratios(self) -> Tensor:
        """Zeros: features are factored before they are squared, and keep their digits."""
        return torch.zeros(self.width, dtype=torch.float64, device=self.device)

    def scatter(self) -> Never:
        """Refused: class means may have more of a direction than the eigenpairs that are left."""
        raise ValueError(
            "eigenpairs of a second moment give no scatter within classes: use a memory of level "
            "'shared', or ridge regression with rank="
        )

    # -- arithmetic -------------------------------------------------------------------------

    @outside_inference_mode
    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> Self:
        """Add the samples of a batch, which is factored along with what is kept.

        Raises:
            TypeError, ValueError, OverflowError: as :meth:`protocl.PrototypeMemory.update`.
        """
        super().update(features, labels)
        if len(labels):
            for piece in features.detach().split(max(1, _PIECE // self.width)):
                self._stack(self._mapped(piece.to(self.device)))
        return self

    def require_summed(self) -> None:
        """Samples can be added to eigenpairs, unlike to other estimates."""

    def _mapped(self, features: Tensor) -> Tensor:
        wide = features if features.dtype == torch.float64 else features.to(torch.float32)
        with without_autocast(features.device.type):
            return self.feature_map(wide).to(torch.float64)

    def _stack(self, rows: Tensor) -> None:
        """Factor what is kept and ``rows`` ``(N, W)``, whose samples are counted already."""
        stacked = torch.cat([self.factor, rows])
        _, sizes, vectors = torch.linalg.svd(stacked, full_matrices=False)
        most = max(1, min(round(self.share * self.total), self.rank))
        zero = float(sizes[0]) * max(stacked.shape) * torch.finfo(sizes.dtype).eps
        kept = min(most, int((sizes > zero).sum()))
        self.factor = sizes[:kept, None] * vectors[:kept]
        if most < len(sizes):
            self.error = self.error + sizes[most].square()

    def _combine(self, other: AdditiveStatistics, sign: int) -> None:
        self.require_compatible(other)
        assert isinstance(other, LowRankMemory)  # nothing else is compatible
        super()._combine(other, sign)
        self.error = self.error + other.error.to(self.device)
        if len(other.factor):
            self._stack(other.factor.to(self.device))

    def subtract(self, other: PrototypeMemory) -> Never:
        """Refused; see the class."""
        raise ValueError(
            "nothing can be taken out of eigenpairs of a second moment, which no longer tell "
            "whose samples they came from: build the memory again without those samples, or use "
            "exact sums (ridge without rank=), which forget"
        )

    def forget(self, classes: int | Iterable[int] | Tensor) -> Never:
        """Refused; see the class."""
        self.subtract(self)

    def subset(self, classes: int | Iterable[int] | Tensor) -> Never:
        """Refused: classes share the eigenpairs."""
        raise ValueError(
            "eigenpairs of a second moment cannot be split by class; "
            "take memory.at_level('mean').subset(...)"
        )

    def all_reduce(self, group: Any = None) -> Never:
        """Refused: processes add up sums, and these are none."""
        raise ValueError(
            "eigenpairs of a second moment are no sums that processes could add up: run in one "
            "process, or use exact sums (ridge without rank=)"
        )

    # -- kind -------------------------------------------------------------------------------

    def empty_like(self, level: Level | None = None) -> PrototypeMemory:
        """A memory without samples that otherwise fits; plain sums where a level is given."""
        if level is not None:
            return super().empty_like(level)
        return LowRankMemory(
            self.feature_dim, rank=self.rank, share=self.share,
            feature_map=self.feature_map, fingerprint=self.fingerprint,
        ).to(self.device)  # fmt: skip

    def at_level(self, level: Level) -> PrototypeMemory:
        """The class sums alone, which are exact.

        Raises:
            ValueError: ``level`` is not ``mean``.
        """
        self.require_level(level)
        sums = {name: part for name, part in self.parts().items() if name not in _SHARED}
        return PrototypeMemory.from_parts(self.empty_like("mean"), sums)

    def describe(self) -> dict[str, str]:
        bounds = {"rank": str(self.rank), "share": repr(self.share)}
        return {**super().describe(), **bounds}

    @classmethod
    def from_description(
        cls, description: Mapping[str, str], feature_map: FeatureMap
    ) -> LowRankMemory:
        """A memory without samples of the kind that :meth:`describe` tells of.

        Raises:
            ValueError, KeyError: the description is damaged.
        """
        return cls(
            int(description["feature_dim"]), rank=int(description["rank"]),
            share=float(description["share"]), feature_map=feature_map,
            fingerprint=description.get("fingerprint"),
        )  # fmt: skip

    def _layout_at(self, level: Level, moments: Moments | None = None) -> Layout:
        if level != "mean":
            return super()._layout_at(level, moments)
        return LowRankLayout("mean", self.width, 0, False, self.step, self.moments, self.rank)
