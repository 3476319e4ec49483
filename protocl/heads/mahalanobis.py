"""Mahalanobis distance with one covariance a class: FeCAM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional

from protocl.batch import Level
from protocl.heads.base import Head
from protocl.heads.covariance import fill_flat, shrink_diagonals, to_correlations, whitening
from protocl.maps import FeatureMap, Tukey, UnitNorm
from protocl.memory import PrototypeMemory

_PIECE = 1 << 20
"""Elements of the differences ``(G, N, W)`` that are held at once."""

_BLOCKS = 4
"""Blocks of rows in which a triangular factor is multiplied, without most of its zeros."""


class Mahalanobis(Head):
    """The class whose mean is nearest under the class's own covariance.

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
        dtype: precision of the factors and logits. The factors take ``C * W^2`` numbers.

    A class with one sample, or a feature without variance, falls back on the Euclidean distance
    in what it lacks: correlation 1 with itself, or the average variance of all classes.

    Source: Goswami et al. 2023, "FeCAM: exploiting the heterogeneity of class distributions in
    exemplar-free continual learning", section 4 and the authors' code.
    """

    required_level: ClassVar[Level] = "full"

    def __init__(
        self,
        shrinkage: tuple[float, float] | None = (1.0, 1.0),
        *,
        shrink_passes: int = 2,
        tukey: float | None = 0.5,
        mean_of: Literal["raw", "transformed"] = "raw",
        normalize: bool = True,
        correlation: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(dtype=dtype)
        if mean_of not in ("raw", "transformed"):
            raise ValueError(f"mean_of='{mean_of}': expected 'raw' or 'transformed'")
        if shrinkage is not None and min(shrinkage) < 0:
            raise ValueError(f"shrinkage={shrinkage}: expected two numbers >= 0, or None")
        self.shrinkage = shrinkage
        self.shrink_passes = shrink_passes
        self.tukey = tukey
        self.mean_of = mean_of
        self.normalize = normalize
        self.correlation = correlation
        self._triangular = True
        self.raw_means = tukey is not None and mean_of == "raw"  # type: ignore[misc]

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
        return UnitNorm() if self.normalize else FeatureMap()

    def _fit(self, memory: PrototypeMemory) -> None:
        self._set(_means=self._class_means(memory))
        factors = [whitening(part).to(self.dtype) for part in self._matrices(memory)]
        self._set(_factors=torch.cat(factors))
        stored = self.get_buffer("_factors")
        # A pseudo-inverse, for a singular matrix, has a factor that is not triangular.
        self._triangular = all(torch.equal(factor, factor.tril()) for factor in stored)

    def _class_means(self, memory: PrototypeMemory) -> Tensor:
        if self.tukey is None:
            return memory.means
        means = Tukey(self.tukey)(memory.unmapped_means) if self.raw_means else memory.means
        return functional.normalize(means, dim=1) if self.normalize else means

    def _matrices(self, memory: PrototypeMemory) -> Iterator[Tensor]:
        """Shrunk covariance or correlation matrices in float64, a few classes at a time."""
        group = max(1, _PIECE // memory.width**2)
        spread = float(memory.at_level("diagonal").scatter().mean(1).sum()) / memory.total
        for ids in memory.classes.split(group):
            part = memory.subset(ids)
            freedom = (part.counts - 1).clamp(min=1)
            matrices = part.scatter() / freedom[:, None, None]
            for _ in range(self.shrink_passes if self.shrinkage else 0):
                shrink_diagonals(matrices, *self.shrinkage)  # type: ignore[misc]
            if self.correlation:
                yield to_correlations(matrices)
            else:
                yield fill_flat(matrices, spread or 1.0)

    def _logits(self, features: Tensor) -> Tensor:
        features = self.feature_map(features.shape[1])(features)
        if self.normalize and self.tukey is not None:
            features = functional.normalize(features, dim=1)
        means, factors = self.get_buffer("_means"), self.get_buffer("_factors")
        logits = features.new_empty(len(features), len(means))
        rows = max(1, _PIECE // features.shape[1])
        for start in range(0, len(features), rows):
            part = features[start : start + rows]
            group = max(1, _PIECE // part.numel()) if part.numel() else len(means)
            for first in range(0, len(means), group):
                chosen = slice(first, first + group)
                differences = part - means[chosen, None]
                distances = self._squared_lengths(differences, factors[chosen])
                logits[start : start + rows, chosen] = distances.T.neg()
        return logits

    def _squared_lengths(self, differences: Tensor, factors: Tensor) -> Tensor:
        """``|A_c d|^2`` ``(G, N)`` of differences ``(G, N, W)`` under factors ``(G, W, W)``."""
        width = factors.shape[1]
        block = -(-width // _BLOCKS) if self._triangular else width
        total = differences.new_zeros(differences.shape[:2])
        for start in range(0, width, block):
            stop = min(start + block, width) if self._triangular else width
            whitened = differences[..., :stop] @ factors[:, start : start + block, :stop].mT
            total += whitened.square_().sum(-1)
        return total
