"""How well clusters fit classes: accuracies of discovery, from tables that add up.

A table is a :class:`.Confusion` whose predicted ids are clusters. Clusters have no names, so each
class is given one of its own, those for which most samples match (Hungarian method). Unmatched
clusters are errors: too many cost as well as too few.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from protocl.memory.rows import class_id_tensor
from protocl.metrics.confusion import Confusion

Form = Literal["v2", "v1", "balanced"]


class SplitAccuracy(NamedTuple):
    """Shares in [0, 1] of samples whose cluster is that of their class.

    Attributes:
        all: of all samples.
        old: of those of known classes; None without any.
        new: of those of other classes; None without any.
    """

    all: float
    old: float | None
    new: float | None


def assignment(table: Confusion) -> dict[int, int]:
    """Cluster -> class, one to one, so that most samples match."""
    rows = _Rows(table)
    clusters, classes = rows.matched()
    return dict(zip(rows.clusters[clusters].tolist(), rows.classes[classes].tolist(), strict=True))


def clustering_accuracy(table: Confusion) -> float:
    """The share of samples whose cluster is that of their class.

    Raises:
        ValueError: there is no sample.

    >>> table = Confusion.from_predictions(torch.tensor([7, 7, 7, 3]), torch.tensor([0, 0, 1, 1]))
    >>> clustering_accuracy(table)
    0.75
    """
    return split_accuracy(table, ()).all


def split_accuracy(
    table: Confusion, old: int | Iterable[int] | Tensor, form: Form = "v2"
) -> SplitAccuracy:
    """Accuracies over all samples, those of known classes and those of new ones.

    Source: Vaze et al., "Generalized category discovery", CVPR 2022, section 4.1, and their code
    for the names of the forms.

    Args:
        table: true classes against clusters.
        old: ids of the known classes.
        form: ``"v2"``, which literature reports: one assignment over all samples. ``"v1"``: one for
            known and one for new classes, which hides a cluster that holds both. ``"balanced"``: as
            v2, with means over classes in place of shares of samples.

    Raises:
        ValueError: there is no sample, or no such form.

    >>> table = Confusion.from_predictions(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 0, 2]))
    >>> split_accuracy(table, [0, 1]), split_accuracy(table, [0, 1], "v1").new
    (SplitAccuracy(all=0.75, old=1.0, new=0.5), 1.0)
    """
    if form not in get_args(Form):
        raise ValueError(f"form={form!r}: expected one of {', '.join(get_args(Form))}")
    if table.total == 0:
        raise ValueError("the accuracy of no sample is undefined: the table is empty")
    known = class_id_tensor(old).to(table.true.device)
    if form == "v1":
        return _apart(table, known)
    matched, totals, classes = _matches(table)
    shares = matched / totals if form == "balanced" else matched
    weights = np.ones_like(totals) if form == "balanced" else totals
    is_old = torch.isin(classes, known.cpu()).numpy()
    return SplitAccuracy(
        float(shares.sum() / weights.sum()),
        _share(shares[is_old], weights[is_old]),
        _share(shares[~is_old], weights[~is_old]),
    )


class _Rows:
    """A table as a matrix ``(K, C)``: rows are clusters, columns classes."""

    def __init__(self, table: Confusion) -> None:
        self.classes, column = torch.unique(table.true.cpu(), return_inverse=True)
        self.clusters, row = torch.unique(table.predicted.cpu(), return_inverse=True)
        self.counts = np.zeros((len(self.clusters), len(self.classes)), dtype=np.int64)
        self.counts[row, column] = table.counts.cpu()

    def matched(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns, one to one, whose counts have the largest sum."""
        from scipy.optimize import linear_sum_assignment  # a third of a second to import

        rows, columns = linear_sum_assignment(-self.counts)
        return rows, columns


def _matches(table: Confusion) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """By class: samples in its cluster, samples, and its id."""
    rows = _Rows(table)
    clusters, classes = rows.matched()
    matched = np.zeros(len(rows.classes), dtype=np.int64)
    matched[classes] = rows.counts[clusters, classes]
    return matched, rows.counts.sum(0), rows.classes


def _apart(table: Confusion, known: Tensor) -> SplitAccuracy:
    """Known and new classes each with an assignment of their own."""
    is_old = torch.isin(table.true, known)
    sums = []
    for kept in (is_old, ~is_old):
        part = Confusion(table.true[kept], table.predicted[kept], table.counts[kept])
        sums.append(_matches(part)[0].sum() if part.total else 0)
    totals = [int(table.counts[kept].sum()) for kept in (is_old, ~is_old)]
    old, new = (s / n if n else None for s, n in zip(sums, totals, strict=True))
    return SplitAccuracy(
        float(sum(sums) / table.total),
        None if old is None else float(old),
        None if new is None else float(new),
    )


def _share(parts: np.ndarray, wholes: np.ndarray) -> float | None:
    return float(parts.sum() / wholes.sum()) if len(wholes) else None
