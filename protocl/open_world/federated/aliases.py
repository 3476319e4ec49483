"""Which rows without a name are one category, and which a known class: a pure function."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.open_world.agglomeration import NAMELESS, agglomerate
from protocl.open_world.categories import Rows
from protocl.open_world.evidence import TwoCovariance


@dataclass(frozen=True)
class Aliases:
    """What each row is taken for. An opinion: never sent as truth, never added to.

    Attributes:
        category: id of a row -> id of its category: a known class, the class of a name, or the
            smallest id among the rows of the category.
    """

    category: Mapping[int, int]

    @property
    def categories(self) -> list[int]:
        """Ids of all categories, ascending."""
        return sorted(set(self.category.values()))

    def of(self, ids: Tensor) -> Tensor:
        """Categories ``(N,)`` of rows ``(N,)``; an id that is no such row stands for itself."""
        values = [self.category.get(row, row) for row in ids.tolist()]
        return torch.tensor(values, dtype=torch.int64)

    @property
    def digest(self) -> str:
        """Equal for equal aliases: what a server that answers for others may publish."""
        text = json.dumps(sorted(self.category.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def resolve(self, rows: PrototypeMemory) -> PrototypeMemory:
        """The sums of ``rows`` by category; the rows stay as they are.

        Args:
            rows: without names, of level ``mean``.
        """
        ids = self.of(rows.classes)
        total, left = rows.empty_like(), torch.arange(len(ids))
        while len(left):  # a memory has a class but once: the first row of each category, ...
            first = _first_of_each(ids[left])
            part = rows.subset(rows.classes[left[first]]).relabelled(ids[left[first]])
            total.merge(part)
            left = left[~torch.isin(torch.arange(len(left)), first)]
        return total


def _first_of_each(ids: Tensor) -> Tensor:
    """Place of the first of each id, ascending."""
    _, kind = ids.unique(return_inverse=True)
    places = torch.full((int(kind.max()) + 1,), len(ids))
    places.scatter_reduce_(0, kind, torch.arange(len(ids)), "amin")
    return places.sort().values


def agree(
    evidence: TwoCovariance,
    known: PrototypeMemory,
    rows: PrototypeMemory,
    *,
    offset: float,
    absorb: float = 0.0,
    named: Mapping[int, int] | None = None,
) -> Aliases:
    """Join rows of all clients into categories, and find those that are a known class.

    A pure function of merged statistics, so that a star and gossip that end at the same sums end
    at the same categories, whoever computes them. It is computed anew from all rows, since a row
    that arrives later can join two categories. Rows of one client may join as well: clients
    split too finely rather than too coarsely.

    Args:
        evidence: settings of it; it is fitted to ``known``.
        known: the named classes, of level ``shared``.
        rows: those without a name, of level ``mean``.
        offset: log odds ratio above which rows join; 0 or below (:class:`.OffsetTable`).
        absorb: log odds ratio above which a category without a name is a known class.
        named: row -> class of the name given to it so far (:attr:`.Namings.class_ids`). Rows of
            two names never join, which splits a category that was joined wrongly.

    Raises:
        ValueError: a row has the id of a known class, or the memories do not fit.
    """
    if overlap := set(rows.classes.tolist()) & set(known.classes.tolist()):
        raise ValueError(f"rows {sorted(overlap)[:5]} have ids of known classes")
    here = evidence.fit(known).rows(rows)
    names, meant = _numbered(here.ids, named or {})
    joins = agglomerate(evidence, here, names=names, lowest=offset)
    groups = joins.groups(offset)
    merged = here.grouped(groups)
    targets = _targets(evidence, merged, absorb)
    for place, name in zip(groups.tolist(), names, strict=True):
        if name != NAMELESS:
            targets[place] = meant[name]
    pairs = zip(here.ids.tolist(), groups.tolist(), strict=True)
    return Aliases({row: targets[place] for row, place in pairs})


def _numbered(ids: Tensor, named: Mapping[int, int]) -> tuple[list[int], list[int]]:
    """The number of each row's name, -1 without one, and the class that each number stands for."""
    meant = sorted(set(named.values()))
    number = {class_id: n for n, class_id in enumerate(meant)}
    return [number[named[i]] if i in named else NAMELESS for i in ids.tolist()], meant


def _targets(evidence: TwoCovariance, merged: Rows, absorb: float) -> list[int]:
    """The known class that explains each category, or the category's own id."""
    if not len(merged):
        return []
    best, place = evidence.same(merged, evidence.known_rows).max(1)
    known = evidence.known_rows.ids[place]
    return torch.where(best > absorb, known, merged.ids).tolist()
