"""How far methods are apart on the very same seeds: paired differences with an interval.

A seed decides class order and data split for every method alike, so that differences between two
methods vary less from seed to seed than the methods do, and two rows whose spreads overlap may be
told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from protocl import metrics
from protocl.report.groups import Benchmark, Group
from protocl.report.runs import Run


@dataclass(frozen=True)
class Difference:
    """A method's last accuracy minus that of the reference, over the seeds that both have.

    Attributes:
        label: the method.
        reference: what it is compared with.
        n: seeds that both have, at least two.
        mean: mean of the differences, in points.
        low: lower end of the confidence interval, in points.
        high: its upper end.
    """

    label: str
    reference: str
    n: int
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = f"[{self.low:+.2f}, {self.high:+.2f}]"
        return f"{self.label} - {self.reference}: {self.mean:+.2f} {interval} ({self.n} seeds)"


def paired_differences(benchmark: Benchmark, confidence: float = 0.95) -> list[Difference]:
    """Differences of the last accuracy from the first group's, which has the best average.

    The interval is Student's for the mean of paired differences. A group that shares fewer than
    two seeds with the first has none.

    Args:
        benchmark: groups, the best first.
        confidence: probability that the interval covers the true mean, in (0, 1).
    """
    first, *others = benchmark.groups
    pairs = ((group, _paired(group, first)) for group in others)
    return [
        _difference(group, first, values, confidence) for group, values in pairs if len(values) > 1
    ]


def _paired(group: Group, reference: Group) -> list[float]:
    """Points by which each common seed's last accuracy differs."""
    accuracy = {run.seed: _last(run) for run in reference.runs}
    return [_last(run) - accuracy[run.seed] for run in group.runs if run.seed in accuracy]


def _last(run: Run) -> float:
    return 100 * metrics.last_accuracy(run.stream_accuracy)


def _difference(
    group: Group, reference: Group, values: Sequence[float], confidence: float
) -> Difference:
    from scipy.stats import t

    mean, std, n = metrics.mean_and_spread(values)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * (std or 0.0) / math.sqrt(n)
    return Difference(group.label, reference.label, n, mean, mean - half, mean + half)
