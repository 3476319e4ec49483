"""How many categories there are: accuracy on known classes by setting, and frequent rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from scipy.optimize import minimize_scalar

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

    A bounded search of Brent, as Vaze et al. (CVPR 2022, section 3.3) do; what was seen best is
    returned wherever the search ends. Of well separated known classes the curve is flat, or favours
    few clusters, for it never looks at what is unknown.

    Args:
        table_of: known classes against clusters, of labelled samples, when *all* samples are
            clustered into that number; a sum over clients.
        least: the least number, that of known classes.
        most: the largest.
        tries: at most so many numbers are tried.

    Raises:
        ValueError: ``least`` is not below ``most``.
    """
    if not 1 <= least < most:
        raise ValueError(f"least={least}, most={most}: expected 1 <= least < most")
    curve: dict[int, float] = {}

    def error(number: float) -> float:
        categories = int(number)
        if categories not in curve:
            curve[categories] = clustering_accuracy(table_of(categories))
        return -curve[categories]

    minimize_scalar(
        error, bounds=(least, most), method="bounded", options={"maxiter": tries, "disp": 0}
    )
    return Estimate(max(curve, key=lambda number: (curve[number], -number)), curve)


def frequent(memory: PrototypeMemory, least: int = FREQUENT) -> int:
    """The number of rows with at least ``least`` samples."""
    return int((memory.counts >= least).sum())
