"""The covariance of a class from the spread of its groups' means: FedCOF, STSA-E."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from protocl.errors import PrecisionWarning
from protocl.memory.estimates.subsamples import SubSamples
from protocl.memory.memory import PrototypeMemory

Weights = Literal["samples", "groups", "released"]


class GroupMoments:
    """Class sums of groups of samples, which are additive as a collection.

    A *group* is what one mean is made of: what one client holds of a class, or a random part of it
    (:class:`.SubSamples`). Means of more samples spread less, so that the spread tells the
    covariance that nobody sent. With ``n_g`` samples and the mean ``m_g`` of each of the ``Q_c``
    groups of class ``c``::

        T_c = sum_g n_g (m_g - m_c)(m_g - m_c)^T          E T_c = (Q_c - 1) Sigma_c

    if the samples of a class are alike in all groups. Of Gaussian features ``T_c`` is Wishart with
    ``Q_c - 1`` degrees of freedom. Where groups differ by shifts ``d_g`` of their means,
    ``sum_g n_g (d_g - d_c)(d_g - d_c)^T / (Q_c - 1)`` is added to what ``T_c`` tells: then **more
    samples a client make it worse**. What comes out is an estimate, marked as such.

    It needs single means: a sum over clients, masked or not, has one group a class and tells
    nothing.

    Args:
        groups: memories of any level and one kind, of which each class is a group. Their order
            matters for rounding only.
        subsamples: how classes were dealt into groups before they were summed, if they were.

    Raises:
        ValueError: there are none, or they do not fit each other.

    Example:
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> clients = [
        ...     PrototypeMemory(1).update(torch.tensor(rows)[:, None], labels)
        ...     for rows in ([1.0, 2.0, 6.0, 9.0], [3.0, 4.0, 7.0, 4.0])
        ... ]
        >>> moments = GroupMoments(clients)
        >>> moments.degrees_of_freedom, moments.memory(weights="groups").scatter().tolist()
        (2, [[24.0]])

    Source: FedCOF, "Exploiting mean distributions for federated learning with pre-trained models";
    STSA-E (arXiv 2506.01327); the pooled form is our own.
    """

    def __init__(
        self, groups: Sequence[PrototypeMemory], subsamples: SubSamples | None = None
    ) -> None:
        if not groups:
            raise ValueError("no groups: expected one memory or more")
        for other in groups[1:]:
            groups[0].require_compatible(other)
        self.groups = list(groups)
        self.subsamples = subsamples or SubSamples()
        self.classes, self.rows = self.subsamples.parents(
            torch.cat([group.classes for group in groups])
        ).unique(return_inverse=True)
        self._counts = torch.cat([group.counts for group in groups])
        self._sums = torch.cat([group.sums for group in groups])

    @property
    def group_counts(self) -> Tensor:
        """``(C,)`` int64, groups ``Q_c`` of each class."""
        return torch.bincount(self.rows, minlength=len(self.classes))

    @property
    def counts(self) -> Tensor:
        """``(C,)`` int64, samples of each class."""
        empty = torch.zeros_like(self.classes)
        return empty.index_add_(0, self.rows, self._counts)

    @property
    def sums(self) -> Tensor:
        """``(C, W)`` float64."""
        empty = self._sums.new_zeros(len(self.classes), self._sums.shape[1])
        return empty.index_add_(0, self.rows, self._sums)

    @property
    def degrees_of_freedom(self) -> int:
        """``nu = sum_c (Q_c - 1)``; the relative error of ``"groups"`` falls as ``nu^-1/2``."""
        return len(self.rows) - len(self.classes)

    def moment(self) -> Tensor:
        """``sum s_g s_g^T / n_g`` over all groups, ``(W, W)`` float64."""
        return self._sums.T @ (self._sums / self._counts[:, None])

    def class_moments(self) -> Tensor:
        """``sum s_g s_g^T / n_g`` over the groups of each class, ``(C, W, W)`` float64."""
        width = self._sums.shape[1]
        empty = self._sums.new_zeros(len(self.classes), width, width)
        products = self._sums[:, :, None] * self._sums[:, None, :] / self._counts[:, None, None]
        return empty.index_add_(0, self.rows, products)

    def __add__(self, other: Self) -> GroupMoments:
        """The groups of both."""
        self._require_dealt_alike(other)
        return GroupMoments(self.groups + other.groups, self.subsamples)

    def __sub__(self, other: Self) -> GroupMoments:
        """Without the groups of ``other``: what is left is as if they had never been there.

        Raises:
            ValueError: one of them is not here, or none would be left.
        """
        self._require_dealt_alike(other)
        left = list(self.groups)
        for gone in other.groups:
            place = next((i for i, group in enumerate(left) if _equal(group, gone)), None)
            if place is None:
                raise ValueError(f"cannot subtract a group of {gone.total} samples: it is not here")
            del left[place]
        return GroupMoments(left, self.subsamples)

    def memory(self, weights: Weights = "samples") -> PrototypeMemory:
        """Statistics of level ``shared`` whose scatter is estimated, for any head that takes it.

        Args:
            weights: ``"samples"``: ``sum_c (n_c - 1) T_c / (Q_c - 1)`` (FedCOF; classes of one
                group add nothing). ``"groups"``: ``(N - C) / nu sum_c T_c``, of least variance
                where classes have one covariance. ``"released"``: the second moment that STSA-E's
                code computes, which divides by the groups of all classes instead of those that
                hold one, and leaves out part of classes of fewer samples than groups.

        Raises:
            ValueError: ``weights`` is none of these.

        Warns:
            PrecisionWarning: no class has two groups, so that nothing tells a covariance.
        """
        if weights not in get_args(Weights):
            raise ValueError(f"weights={weights!r}: expected {', '.join(get_args(Weights))}")
        if not self.degrees_of_freedom:
            warn_of_single_groups()
        counts, sums = self.counts, self.sums
        shares = self._shares(weights, counts)
        second = self._spread(shares, counts, sums)
        kept = shares.clamp(max=1) if weights == "released" else torch.ones_like(shares)
        second += (sums * (kept / counts)[:, None]).T @ sums
        return PrototypeMemory.from_statistics(
            self.kind(self.groups[0], weights),
            classes=self.classes, counts=counts, sums=sums, second_moment=second,
        )  # fmt: skip

    @staticmethod
    def kind(like: PrototypeMemory, weights: Weights) -> PrototypeMemory:
        """An empty memory of the kind that :meth:`memory` gives for groups like ``like``."""
        return PrototypeMemory(
            like.feature_dim, "shared", feature_map=like.feature_map, fingerprint=like.fingerprint,
            estimated=f"group means, weights={weights}", moments=like.moments,
        ).to(like.device)  # fmt: skip

    def _shares(self, weights: Weights, counts: Tensor) -> Tensor:
        """By what ``T_c`` is multiplied, ``(C,)`` float64."""
        freedom = self.group_counts.double() - 1
        if weights == "groups":
            each = float(counts.sum() - len(counts)) / max(self.degrees_of_freedom, 1)
            return torch.full_like(freedom, each)
        if weights == "released":
            freedom = torch.full_like(freedom, float(self._all_groups() - 1))
        return torch.where(freedom > 0, (counts - 1) / freedom.clamp(min=1), 0.0)

    def _all_groups(self) -> int:
        """Groups that there are, whether they hold a class or not."""
        return len(self.groups) * self.subsamples.number

    def _spread(self, shares: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
        """``sum_c share_c T_c`` from deviations, which keep their digits far from the origin."""
        means = sums / counts[:, None]
        deviations = self._sums / self._counts[:, None] - means[self.rows]
        return (deviations * (self._counts * shares[self.rows])[:, None]).T @ deviations

    def _require_dealt_alike(self, other: Self) -> None:
        if self.subsamples.number != other.subsamples.number:
            raise ValueError(
                f"groups of means={self.subsamples.number} and of means={other.subsamples.number} "
                "a class have different ids; deal all alike"
            )


def _equal(a: PrototypeMemory, b: PrototypeMemory) -> bool:
    mine, theirs = a.parts(), b.parts()
    return mine.keys() == theirs.keys() and all(
        torch.equal(part, theirs[name]) for name, part in mine.items()
    )


def warn_of_single_groups() -> None:
    """Say that an estimate tells nothing."""
    warnings.warn(
        "no class has two groups whose means could differ, so nothing tells a covariance: wait "
        "for more clients, or send several means a class",
        PrecisionWarning,
        stacklevel=3,
    )
