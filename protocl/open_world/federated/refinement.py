"""Groups of one client put right: each sample goes where it has most evidence for."""

from __future__ import annotations

import torch
from torch import Tensor

from protocl.config.validation import is_number
from protocl.open_world.categories import Rows
from protocl.open_world.evidence import TwoCovariance, log_evidence


def refined(
    evidence: TwoCovariance, features: Tensor, groups: Tensor, passes: int = 3, *, least: int = 1
) -> Tensor:
    """Move each sample to the group that it has most evidence for, itself left out of its own.

    Joining pair by pair cannot take back what was joined early. What k-means does after its start
    is done here with evidence in place of distances; it concerns one client's samples alone.

    Args:
        evidence: fitted to the known classes.
        features: ``(N, D)``.
        groups: ``(N,)`` int64, from 0 without gaps (:func:`.group`).
        passes: over all samples at most, 0 or more; it ends before when nothing moves.
        least: samples of a group; those of smaller ones go to the larger group that they have most
            evidence for, once the passes have ended. Where no group is as large all stay.

    Returns:
        Groups ``(N,)`` numbered from 0 without gaps; a sample alone stays alone with ``least`` 1.

    Raises:
        ValueError: ``passes`` is no whole number of 0 or more.

    Example:
        >>> features = torch.tensor([[0.0, 1], [1, 0], [9, 0], [8, 1], [0, 8], [1, 9]])
        >>> memory = PrototypeMemory(2, level="shared").update(
        ...     features, torch.tensor([4, 4, 7, 7, 9, 9]))
        >>> evidence = TwoCovariance(shrinkage=0.0).fit(memory)
        >>> wrong = torch.tensor([0, 0, 1, 1, 1])
        >>> refined(evidence, features[[0, 1, 2, 3, 0]], wrong).tolist()
        [0, 0, 1, 1, 0]
    """
    if not (is_number(passes) and passes >= 0 and passes == int(passes)):
        raise ValueError(f"passes={passes!r}: expected a whole number of 0 or more")
    samples = evidence.of_samples(features)
    for _ in range(int(passes)):
        better = _moved(evidence, samples, groups)
        if torch.equal(better, groups):
            break
        groups = better.unique(return_inverse=True)[1]
    return _without_small(evidence, samples, groups, least)


def _without_small(evidence: TwoCovariance, samples: Rows, groups: Tensor, least: int) -> Tensor:
    """Groups ``(N,)`` of which none has fewer than ``least`` samples, if one has as many."""
    large = groups.bincount() >= least
    if bool(large.all()) or not bool(large.any()):
        return groups
    places, lost = large.nonzero()[:, 0], ~large[groups]
    ratios = evidence.same(samples[lost], samples.grouped(groups)[places])
    moved = groups.masked_scatter(lost, places[ratios.argmax(1)])
    return moved.unique(return_inverse=True)[1]


def _moved(evidence: TwoCovariance, samples: Rows, groups: Tensor) -> Tensor:
    """The best group ``(N,)`` of each sample, by the groups as they are."""
    if not len(groups):
        return groups
    rows = samples.grouped(groups)
    own = rows[groups]
    rest = Rows(own.ids, own.counts - 1, own.coordinates - samples.coordinates)
    here = sum(
        sign * log_evidence(part.counts, part.coordinates, evidence.between)
        for sign, part in ((1, own), (-1, rest), (-1, samples))
    )
    ratios = evidence.same(samples, rows).scatter_(
        1, groups[:, None], torch.as_tensor(here)[:, None]
    )
    return torch.where(rest.counts < 1, groups, ratios.argmax(1))
