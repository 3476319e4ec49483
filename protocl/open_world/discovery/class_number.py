"""How many categories there are: accuracy on known classes by setting, and frequent rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np

from protocl.memory import PrototypeMemory
from protocl.metrics.clusters import clustering_accuracy
from protocl.metrics.confusion import Confusion

Setting = TypeVar("Setting", int, float)

FREQUENT = 5
"""Samples from which on a category counts: smaller ones are mostly debris."""


class Estimate(NamedTuple):
    """A number of categories, and what was tried.

    Attributes:
        categories: the number.
        curve: accuracy on samples of known classes, in [0, 1], by number of categories.
    """

    categories: int
    curve: dict[int, float]


def accuracies(tables: Mapping[Setting, Confusion]) -> dict[Setting, float]:
    """The clustering accuracy by setting, such as a number of categories or a threshold.

    Args:
        tables: known classes against clusters, by setting; sums over clients.
    """
    return {setting: clustering_accuracy(table) for setting, table in tables.items()}


def best_setting(tables: Mapping[Setting, Confusion]) -> Setting:
    """The setting of the best accuracy on known classes whose labels were hidden.

    Of equal ones the middle: the curve is flat around its best.

    Raises:
        ValueError: there is no table.

    >>> import torch
    >>> good = Confusion.from_predictions(torch.tensor([1, 2]), torch.tensor([7, 8]))
    >>> poor = Confusion.from_predictions(torch.tensor([1, 2]), torch.tensor([7, 7]))
    >>> best_setting({-30.0: poor, -20.0: good, -10.0: good, 0.0: good})
    -10.0
    """
    if not tables:
        raise ValueError("no setting was tried: expected at least one table")
    curve = accuracies(tables)
    best = max(curve.values())
    among = sorted(setting for setting, accuracy in curve.items() if accuracy == best)
    return among[len(among) // 2]


def by_labelled_accuracy(
    table_of: Callable[[int], Confusion], least: int, most: int, *, tries: int = 20
) -> Estimate:
    """The number at which labelled samples, clustered without their labels, are best in place.

    Numbers at equal distances over the whole range first, then those midway between the best and
    its neighbours. The search of Vaze et al. (CVPR 2022, section 3.3), Brent's, takes the curve for
    smooth, and ends in a local best where it is not. Of numbers whose accuracies are within one
    standard error of the best the middle one is taken: of well separated known classes the curve is
    flat, or favours few clusters, for it never looks at what is unknown.

    Args:
        table_of: known classes against clusters, of labelled samples, when *all* samples are
            clustered into that number; a sum over clients.
        least: the least number, that of known classes.
        most: the largest.
        tries: at most so many numbers are tried, two thirds of them over the whole range.

    Raises:
        ValueError: ``least`` is not below ``most``, or no number is to be tried.
    """
    if not 1 <= least < most:
        raise ValueError(f"least={least}, most={most}: expected 1 <= least < most")
    if tries < 1:
        raise ValueError(f"tries={tries}: expected 1 or more")
    even = np.linspace(least, most, max(1, -(-2 * tries // 3))).round().astype(int).tolist()
    tables = {number: table_of(number) for number in dict.fromkeys(even)}
    while len(tables) < tries and (midway := _beside(_best(tables), sorted(tables))):
        tables |= {number: table_of(number) for number in midway[: tries - len(tables)]}
    return Estimate(_best(tables), accuracies(dict(sorted(tables.items()))))


def _best(tables: Mapping[int, Confusion]) -> int:
    """The middle one of the numbers that are as good as the best but for chance."""
    curve = accuracies(tables)
    number, best = max(curve.items(), key=lambda pair: pair[1])
    error = (best * (1 - best) / max(tables[number].total, 1)) ** 0.5
    among = sorted(number for number, accuracy in curve.items() if accuracy >= best - error)
    return among[len(among) // 2]


def _beside(best: int, tried: list[int]) -> list[int]:
    """Numbers midway between the best and those tried next to it; none where they are adjacent."""
    place = tried.index(best)
    around = tried[max(0, place - 1) : place + 2]
    return [(a + b) // 2 for a, b in pairwise(around) if b - a > 1]


def frequent(memory: PrototypeMemory, least: int = FREQUENT) -> int:
    """The number of rows with at least ``least`` samples."""
    return int((memory.counts >= least).sum())
