"""Mahalanobis distance with one covariance a class, or one for all: FeCAM."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor

from protocl.config.validation import is_number, require_choice
from protocl.heads.centred import CentredHead
from protocl.heads.covariance.directions import squares_behind
from protocl.heads.covariance.forms import ClassFactors, CovarianceForm, LowRank, SharedFactor
from protocl.heads.covariance.shrinkage import (
    fill_flat,
    shrink_diagonals,
    to_correlations,
    warn_of_no_scatter,
)
from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level
from protocl.memory.buffers import GrowingRows
from protocl.memory.feature_maps import FeatureMap, Tukey, UnitNorm, unit
from protocl.memory.limits.capacity import require_bytes

Covariance = Literal["class", "low_rank", "shared"]

_PIECE = 1 << 20
"""Elements of the covariance matrices that are shrunk at once."""


class Mahalanobis(CentredHead):
    """A sample belongs to the class whose mean is nearest under the class's own covariance.

    Logits are ``-(x - m_c)^T R_c^-1 (x - m_c)`` without log-determinant and prior, where ``R_c`` is
    the class covariance, shrunk and (by default) turned into a correlation matrix. Every
    ``R_c`` is factorised once, when the memory changes.

    Three published forms, as class methods:

    * :meth:`fecam`: Tukey's square root; the class mean is the transformed *mean of raw features*;
      shrunk twice; the authors' code for convolutional networks.
    * :meth:`fecam_vit`: unit features, no Tukey, shrunk once; the authors' script for ViT.
    * :meth:`avalanche`: as Avalanche 0.6.0, whose class mean is the *mean of transformed features*.

    Args:
        shrinkage: ``(a1, a2)`` multiples of mean variance and mean covariance that are added
            (eq. 4); None for no shrinkage.
        shrink_passes: how many times the shrinkage is applied.
        tukey: power of Tukey's transform, 0 for the logarithm, None for none. Needs features >= 0.
        mean_of: ``"raw"`` (mean, then transform) or ``"transformed"`` (transform, then mean).
        normalize: scale queries and means to unit norm after the transform. Without Tukey the
            samples are scaled before they are summed, and their mean is left as it is.
        correlation: turn covariances into correlations.
        covariance: what is kept of them. ``"class"``: all. ``"low_rank"``: of each class its
            ``rank`` largest directions and the diagonal. ``"shared"``: one matrix for all classes
            (the common covariance of the paper), which takes statistics of level
            ``shared`` alone and so goes with any number of classes.
            :mod:`protocl.heads.covariance.forms` states what each takes.
        rank: see ``covariance``.
        map: see :class:`.Head`; not beside ``tukey``. With ``normalize`` queries and means are
            scaled after it.
        dtype: precision of what is kept and of the logits.

    A class with one sample, or a feature without variance, falls back on the Euclidean distance
    in what it lacks: correlation 1 with itself, or the average variance of all classes.

    Source: Goswami et al. 2023, "FeCAM: exploiting the heterogeneity of class distributions in
    exemplar-free continual learning", section 4 and the authors' code.

    Example:
        >>> head = Mahalanobis(shrinkage=(0.1, 0.0), tukey=None, correlation=False, normalize=False)
        >>> wide, narrow = torch.tensor([[-4.0], [4.0]]), torch.tensor([[4.9], [5.1]])
        >>> labels = torch.tensor([4, 4, 9, 9])
        >>> memory = head.new_memory(1).update(torch.cat([wide, narrow]), labels)
        >>> head.fit(memory).predict(torch.tensor([[3.0], [5.0]])).tolist()
        [4, 9]
    """

    required_level: Level = "full"
    _factors: Tensor

    def __init__(
        self,
        shrinkage: tuple[float, float] | None = (1.0, 1.0),
        *,
        shrink_passes: int = 2,
        tukey: float | None = 0.5,
        mean_of: Literal["raw", "transformed"] = "raw",
        normalize: bool = True,
        correlation: bool = True,
        covariance: Covariance = "class",
        rank: int = 16,
        map: FeatureMap | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(dtype=dtype, map=map)
        if tukey is not None:
            self._require_no_map(f"tukey={tukey}", "tukey=None")
        require_choice("mean_of", mean_of, ("raw", "transformed"))
        if shrinkage is not None and not _two_weights(shrinkage):
            raise ValueError(
                f"shrinkage={shrinkage!r}: expected two numbers >= 0, such as (1.0, 1.0), or None"
            )
        self.shrinkage = shrinkage
        self.shrink_passes = shrink_passes
        self.tukey = tukey
        self.mean_of = mean_of
        self.normalize = normalize
        self.correlation = correlation
        self.covariance = covariance
        self._fitted: dict[int, str] = {}
        self._derived: dict[int, str] = {}
        self._form = _form(covariance, rank)
        self.required_level = self._form.level
        self.raw_means = tukey is not None and mean_of == "raw"

    @classmethod
    def fecam(cls, shrinkage: tuple[float, float] = (1.0, 1.0)) -> Self:
        """FeCAM as its authors run it on convolutional networks."""
        return cls(shrinkage)

    @classmethod
    def fecam_vit(cls) -> Self:
        """FeCAM as its authors run it on vision transformers, whose features may be negative."""
        return cls((1.0, 0.0), shrink_passes=1, tukey=None)

    @classmethod
    def avalanche(cls, shrinkage: tuple[float, float] = (1.0, 1.0)) -> Self:
        """FeCAM as Avalanche 0.6.0 computes it for classes that come once."""
        return cls(shrinkage, mean_of="transformed")

    def feature_map(self, feature_dim: int) -> FeatureMap:
        if self.tukey is not None:
            return Tukey(self.tukey)
        plain = self.normalize and self.map is None
        return UnitNorm() if plain else super().feature_map(feature_dim)

    @property
    def _scales(self) -> bool:
        """Whether means and queries are scaled after the map, which is not itself a scaling."""
        return self.normalize and (self.tukey is not None or self.map is not None)

    def _fit(self, memory: PrototypeMemory) -> None:
        self._require_bytes(len(memory), memory.width, memory.device)
        revisions = memory.class_revisions()
        known = self._known(revisions)
        changed = [c for c in revisions if c not in known]
        matrices = self._matrices(memory, torch.tensor(changed, device=memory.device))
        means = self._move(self._class_means(memory))
        factors = [self._factors[row] for row in known.values()]
        parts = self._form.derive(means, matrices, self.dtype, factors)
        del factors  # rows that have a tensor of their own cannot be moved
        if known:
            self._put_among_known(parts.pop("factors"), list(revisions), changed)
        self._set(**{f"_{name}": value for name, value in parts.items()})
        self._fitted = revisions
        fit, before = uuid.uuid4().hex, self._derived
        self._derived = {c: before[c] if c in known else fit for c in revisions}

    def _put_among_known(
        self, factors: Tensor, classes: Sequence[int], changed: Sequence[int]
    ) -> None:
        """Put the factors of ``changed`` classes among those of all, without a copy of these."""
        rows = {class_id: row for row, class_id in enumerate(classes)}
        kept = [class_id in rows for class_id in self._fitted]
        places = [rows[class_id] for class_id in self._fitted if class_id in rows]
        self._fitted, self._revision = {}, None  # whoever is interrupted here has no classifier
        if not all(kept):
            self._factors = self._factors[kept]
        self._growing.spread(self, "_factors", torch.tensor(places), len(classes))
        self._factors[[rows[class_id] for class_id in changed]] = factors

    @cached_property
    def _growing(self) -> GrowingRows:
        return GrowingRows()

    def keyed_rows(self) -> Iterator[tuple[Tensor, list[str]]]:
        """See :class:`protocl.io.pieces.KeyedRows`: each factor belongs to the fit it is from."""
        if self._form.keeps_classes and self._derived:
            yield self._factors, [f"{fit} {class_id}" for class_id, fit in self._derived.items()]

    def _known(self, revisions: Mapping[int, str]) -> dict[int, int]:
        """The classes that are as they were at the last fit, and the rows of their factors."""
        # Without correlations a class may be filled up with the variance of all.
        if not (self._fitted and self._form.keeps_classes and self.correlation):
            return {}
        return {
            class_id: row
            for row, (class_id, revision) in enumerate(self._fitted.items())
            if revisions.get(class_id) == revision
        }

    def _require_bytes(self, classes: int, width: int, device: torch.device) -> None:
        """Refuse before allocating what would not fit in memory."""
        size = self.dtype.itemsize

        def alternatives() -> dict[str, int]:
            forms = {"low_rank": LowRank(16), "shared": SharedFactor()}
            return {
                f"'{name}'": size * form.numbers(classes, width) for name, form in forms.items()
            }

        require_bytes(
            size * self._form.numbers(classes, width),
            device,
            f"covariance='{self.covariance}' of {classes:,} classes x {width} features",
            alternatives,
        )

    def _class_means(self, memory: PrototypeMemory) -> Tensor:
        means = memory.means
        if self.tukey is not None and self.raw_means:
            means = Tukey(self.tukey)(memory.unmapped_means)
        return unit(means) if self._scales else means

    def _matrices(
        self, memory: PrototypeMemory, classes: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Shrunk covariance or correlation matrices in float64, a few of ``classes`` at a time.

        With them ``(G, W)`` the sums of squares that they are the remainder of, in their unit.
        """
        if self.required_level == "shared":
            pooled = memory if memory.level == "shared" else memory.at_level("shared")
            freedom = max(memory.total - len(memory), 1)
            scatter = pooled.scatter()[None] / freedom
            variance = _mean_variance(scatter.diagonal(dim1=1, dim2=2))
            yield self._shrunk(scatter, pooled.squares[None] / freedom, flat=variance)
            return
        group = max(1, _PIECE // memory.width**2)
        variance = _mean_variance(memory.at_level("diagonal").scatter() / memory.total)
        for ids in classes.split(group) if len(classes) else ():
            part = memory.subset(ids)
            free = (part.counts - 1).clamp(min=1)[:, None]
            yield self._shrunk(part.scatter() / free[..., None], part.squares / free, flat=variance)

    def _shrunk(self, matrices: Tensor, squares: Tensor, flat: float) -> tuple[Tensor, Tensor]:
        """``(G, W, W)``, shrunk, and made correlations or given ``flat`` where variance is zero.

        Classes without any scatter get it before, so that shrinking widens them like the others.
        """
        squares = squares_behind(matrices, squares)
        bare = matrices.diagonal(dim1=1, dim2=2).sum(1) <= 0
        if not self.correlation and bool(bare.any()):
            matrices[bare] = fill_flat(matrices[bare], flat)
        if self.shrinkage:
            for _ in range(self.shrink_passes):
                shrink_diagonals(matrices, *self.shrinkage)
        if not self.correlation:
            return fill_flat(matrices, flat), squares
        variances = matrices.diagonal(dim1=1, dim2=2).clone()
        squares = torch.where(variances > 0, squares / variances, 0.0)
        return to_correlations(matrices), squares

    def _queries(self, features: Tensor) -> Tensor:
        return self._form.queries(
            self._parts, self._moved(unit(features) if self._scales else features)
        )

    def _scores(self, queries: Tensor, chosen: slice, out: Tensor) -> None:
        self._form.write(self._parts, queries, chosen, out)

    @property
    def _parts(self) -> Mapping[str, Tensor]:
        return {name[1:]: buffer for name, buffer in self.named_buffers(recurse=False)}


def _mean_variance(scatter: Tensor) -> float:
    """Mean over features of the summed rows of ``(C, W)``; 1 and a warning where nothing varies."""
    variance = float(scatter.mean(1).sum())
    if not variance > 0:
        warn_of_no_scatter()
        return 1.0
    return variance


def _two_weights(value: object) -> bool:
    if not isinstance(value, Sequence) or len(value) != 2:
        return False
    return all(is_number(weight) and weight >= 0 for weight in value)


def _form(covariance: str, rank: int) -> CovarianceForm:
    if covariance == "class":
        return ClassFactors()
    if covariance == "low_rank":
        return LowRank(rank)
    if covariance == "shared":
        return SharedFactor()
    raise ValueError(f"covariance='{covariance}': expected 'class', 'low_rank' or 'shared'")
