"""Deep SLDA's running statistics, for comparison with the exact ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Never, Self

import torch
from torch import Tensor

from protocl.memory.batch import Level, check_batch
from protocl.memory.buffers import outside_inference_mode
from protocl.memory.estimates.shrinkage import oas_shrinkage, shrink_towards_identity
from protocl.memory.limits.digits import check_wide
from protocl.memory.memory import PrototypeMemory
from protocl.memory.symmetric import pack_triangles

_PIECE = 2048
"""Samples whose deviations are held at once."""


class StreamingMemory(PrototypeMemory):
    """Means and a covariance updated one sample after the other, as Deep SLDA's code does.

    The code keeps, for the ``t``-th sample ``(x, y)`` counted from 0 and the mean ``mu_y`` of the
    samples of ``y`` before it (0 for the first)::

        S <- (t S + (x - mu_y)(x - mu_y)^T t / (t + 1)) / (t + 1)

    so ``t S`` is a weighted sum of outer products, which is what is accumulated here. Each class's
    first sample adds its whole outer product, and the weights follow the order of arrival:
    these statistics cannot be merged, subtracted or split, nor with sums of samples, in a file or
    out of one. They serve to reproduce numbers.

    Source: Hayes & Kanan 2020, "Lifelong machine learning with deep streaming linear discriminant
    analysis", and its code.

    Args:
        feature_dim: ``D``.
        fingerprint: as for :class:`protocl.PrototypeMemory`.
    """

    ordered: ClassVar[bool] = True

    def __init__(self, feature_dim: int, fingerprint: str | None = None) -> None:
        super().__init__(feature_dim, "shared", fingerprint=fingerprint)

    @outside_inference_mode
    @torch.no_grad()
    def fit_base(self, features: Tensor, labels: Tensor) -> Self:
        """Start from a base session, whose covariance is the OAS estimate around class means.

        Raises:
            ValueError: samples were added before.
        """
        if len(self):
            raise ValueError("fit_base starts a memory: this one already holds samples")
        base = PrototypeMemory(self.feature_dim, "shared").to(self.device).update(features, labels)
        covariance = base.scatter() / base.total
        weight = oas_shrinkage(covariance, base.total)
        second = base.total * shrink_towards_identity(covariance, weight, scaled=True)
        self._add_sums(base.classes, base.counts, base.sums, second)
        self._touch()
        return self

    @outside_inference_mode
    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> Self:
        """Add samples in the order in which they are given; see the class for the rule."""
        check_batch(features, labels, self.feature_dim)
        features = features.to(device=self.device, dtype=torch.float64)
        if not bool(torch.isfinite(features).all()):
            raise ValueError("features hold NaN or infinite values: expected finite numbers")
        if len(features):
            check_wide(features, squared=False)  # deviations are squared, which resolves them
        labels = labels.to(device=self.device, dtype=torch.int64)
        for piece, piece_labels in zip(features.split(_PIECE), labels.split(_PIECE), strict=True):
            self._update_piece(piece, piece_labels)
        self._touch()
        return self

    def _update_piece(self, features: Tensor, labels: Tensor) -> None:
        ids, rows = torch.unique(labels, return_inverse=True)
        counts = torch.bincount(rows, minlength=len(ids))
        places = self._rows_for(ids)
        order = torch.argsort(rows, stable=True)
        starts = (counts.cumsum(0) - counts)[rows[order]]
        sorted_features = features[order]
        before = sorted_features.cumsum(0) - sorted_features
        before = before - before[starts] + self.sums[places][rows[order]]
        seen = torch.arange(len(order), device=order.device) - starts
        seen = seen + self.count[places][rows[order]]
        deviations = sorted_features - before / seen.clamp(min=1)[:, None]
        arrival = self.total + order
        weights = arrival / (arrival + 1)
        second = (deviations * weights[:, None]).T @ deviations
        sums = torch.zeros_like(self.sums[places]).index_add_(0, rows, features)
        self._add_sums(ids, counts, sums, second)

    def _add_sums(self, ids: Tensor, counts: Tensor, sums: Tensor, second: Tensor) -> None:
        self._add_all(ids, counts, {"sum": sums, "second": pack_triangles(second)}, {}, sign=1)

    def empty_like(self, level: Level | None = None) -> StreamingMemory:
        return StreamingMemory(self.feature_dim, self.fingerprint).to(self.device)

    def describe(self) -> dict[str, str]:
        return {**super().describe(), "order_of_samples": "kept"}

    @classmethod
    def from_description(cls, description: Mapping[str, str]) -> StreamingMemory:
        """A memory without samples of the kind that :meth:`describe` tells of.

        Raises:
            ValueError, KeyError: the description is damaged.
        """
        return cls(int(description["feature_dim"]), description.get("fingerprint"))

    def scatter(self) -> Tensor:
        """Deep SLDA's ``t S``, ``(D, D)`` float64."""
        return self.second_moment

    def offset_ratios(self) -> Tensor:
        """Zeros: deviations are taken before they are squared, and keep their digits."""
        return torch.zeros(self.width, dtype=torch.float64, device=self.device)

    def _combine(self, other: object, sign: int) -> Never:
        raise ValueError(
            "Deep SLDA's running covariance depends on the order of samples and cannot be merged, "
            "subtracted or split; use LinearDiscriminant() without streaming=True"
        )

    def subtract(self, other: PrototypeMemory) -> Never:
        """Refused, as a merge is."""
        self._combine(other, -1)

    def forget(self, classes: int | Iterable[int] | Tensor) -> Never:
        """Refused, as a merge is."""
        self._combine(self, -1)

    def subset(self, classes: int | Iterable[int] | Tensor) -> Never:
        """Refused, as a merge is."""
        self._combine(self, -1)

    def all_reduce(self, group: Any = None) -> Never:
        """Refused, as a merge is."""
        self._combine(self, 1)

    def at_level(self, level: Level) -> PrototypeMemory:
        """A copy at its own level; others are refused.

        Raises:
            ValueError: ``level`` is not ``shared``.
        """
        if level == self.level:
            return self.copy()
        raise ValueError(f"Deep SLDA's running statistics cannot be reduced to level '{level}'")
