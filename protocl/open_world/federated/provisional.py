"""Rows of categories that have no name yet: sums under ids that nobody else gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.memory.rows import class_id_of
from protocl.open_world.agglomeration import agglomerate
from protocl.open_world.discovery.k_means import SemiSupervisedKMeans
from protocl.open_world.evidence import TwoCovariance

PREFIX = "new:"
"""Begins the name of every row without a name of its own; no class may be called so."""

LEAST = 5
"""Samples of a row that is sent: of a row of one, the sum is the sample."""

ONE_BY_ONE = 3000
"""Samples of one client that are all compared with each other; more are put together first."""

MOST = 500
"""Rows of one contribution, against floods; the largest are kept."""


@dataclass(frozen=True)
class Found:
    """What one client has found, to be added to a memory of such rows.

    Attributes:
        memory: of level ``mean``.
        names: id -> the text that the id stands for.
        ids: ``(N,)`` int64 row of each sample; -1 where its group was too small, or one too many.
        left_out: groups that are not rows for that reason.
    """

    memory: PrototypeMemory
    names: Mapping[int, str]
    ids: Tensor
    left_out: int


def provisional_name(epoch: str, seq: int, group: int) -> str:
    """The text of a row: life and number of the contribution, and the group within it.

    >>> provisional_name("a1b2", 3, 0)
    'new:a1b2:3:0'
    """
    return f"{PREFIX}{epoch}:{seq}:{group}"


def require_no_prefix(name: str) -> None:
    """Refuse a class that is called as rows without a name are.

    Raises:
        ValueError: it begins with :data:`PREFIX`.
    """
    if name.startswith(PREFIX):
        raise ValueError(
            f"{name!r} begins with '{PREFIX}', which stands for categories without a name; "
            "choose another name"
        )


def group(evidence: TwoCovariance, features: Tensor, offset: float) -> Tensor:
    """The group ``(N,)`` int64 of each sample ``(N, D)`` of one client, numbered from 0.

    Comparing all pairs takes memory and time that grow with ``N^2``; of more than
    :data:`ONE_BY_ONE` samples, those that k-means puts into one of ``N / 5`` clusters begin joined.

    Args:
        evidence: fitted to the known classes.
        features: of samples that no class explains.
        offset: log odds ratio above which groups join (:class:`.OffsetTable` chooses it).
    """
    rows = evidence.of_samples(features)
    near = _near(rows.coordinates) if len(rows) > ONE_BY_ONE else torch.arange(len(rows))
    joins = agglomerate(evidence, rows.grouped(near), lowest=offset)
    return joins.groups(offset)[near]


def _near(coordinates: Tensor) -> Tensor:
    """The cluster ``(N,)`` of each row ``(N, d)``, numbered in the order of their first rows."""
    means = SemiSupervisedKMeans(len(coordinates) // 5, restarts=1, iterations=10)
    centres = means.fit(PrototypeMemory(coordinates.shape[1]), coordinates).centres
    cluster = centres.nearest(coordinates)[0]
    first = torch.full((len(centres.ids),), len(cluster))
    first.scatter_reduce_(0, cluster, torch.arange(len(cluster)), "amin")
    return first.argsort().argsort()[cluster]


def provisional_rows(
    like: PrototypeMemory,
    features: Tensor,
    groups: Tensor,
    *,
    epoch: str,
    seq: int,
    least: int = LEAST,
    most: int = MOST,
) -> Found:
    """The sums of groups of samples, as rows that can be sent, merged and subtracted.

    They belong in a memory of their own: unlabelled samples must not enter the second moment of
    the known classes, for an impure row brings the distance between classes with it.

    Args:
        like: of the known classes; gives width, map, arithmetic and backbone.
        features: ``(N, D)``.
        groups: ``(N,)`` int64, from 0 (:func:`group`).
        epoch, seq: life of the client and number of its contribution; with the group they are
            the id, so that it is nobody else's.
        least: samples of a row, from 1.
        most: rows at most, from 1.

    Raises:
        ValueError: shapes do not fit, a group is below 0, or ``least`` or ``most`` is no whole
            number from 1.

    Example:
        >>> found = provisional_rows(PrototypeMemory(1), torch.tensor([[0.0], [1.0], [9.0]]),
        ...     torch.tensor([0, 0, 1]), epoch="a", seq=1, least=2)
        >>> found.memory.counts.tolist(), list(found.names.values()), found.left_out
        ([2], ['new:a:1:0'], 1)
    """
    for name, value in (("least", least), ("most", most)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}={value!r}: expected a whole number from 1")
    if groups.shape != features.shape[:1]:
        raise ValueError(f"{len(features)} samples, but groups of shape {tuple(groups.shape)}")
    if bool((groups < 0).any()):
        raise ValueError(f"group {int(groups.min())}: expected groups from 0")
    sizes = torch.bincount(groups)
    largest = sizes.argsort(descending=True, stable=True)
    kept = largest[sizes[largest] >= least][:most].sort().values
    names = {class_id_of(text := provisional_name(epoch, seq, g)): text for g in kept.tolist()}
    id_of = torch.full((len(sizes),), -1)
    id_of[kept] = torch.tensor(list(names), dtype=torch.int64)
    ids = id_of[groups]
    memory = like.empty_like("mean")
    if len(kept):
        memory.update(features[ids >= 0], ids[ids >= 0])
    return Found(memory, names, ids, len(sizes) - len(kept))
