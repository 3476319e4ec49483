"""Metrics of class-incremental learning, each a pure function with its formula and source.

Notation: ``a[t][i]`` is the accuracy, in [0, 1], on the test set of experience ``i`` after
training on experience ``t``, for ``i <= t``: a lower-triangular accuracy matrix, given as ``T``
rows of 1, 2, ... ``T`` values. ``A[t]`` is the stream accuracy after experience ``t``: the share
of right answers among all test samples of experiences ``0 ... t``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

AccuracyMatrix = Sequence[Sequence[float]]


class MeanAndSpread(NamedTuple):
    """Mean and sample standard deviation of ``n`` values (``std`` is None when ``n == 1``)."""

    mean: float
    std: float | None
    n: int


def average_incremental_accuracy(stream_accuracy: Sequence[float]) -> float:
    r"""Mean of the stream accuracies after each experience.

    .. math:: \bar A = \frac{1}{T} \sum_{t=0}^{T-1} A_t

    Source: Rebuffi et al., "iCaRL", CVPR 2017, section 4.

    Args:
        stream_accuracy: ``(T,)`` values in [0, 1].

    Raises:
        ValueError: no value, or one outside [0, 1].

    >>> average_incremental_accuracy([1.0, 0.5, 0.75])
    0.75
    """
    _check_accuracies("stream_accuracy", stream_accuracy)
    return sum(stream_accuracy) / len(stream_accuracy)


def last_accuracy(stream_accuracy: Sequence[float]) -> float:
    r"""Stream accuracy after the last experience, :math:`A_{T-1}`.

    Source: Rebuffi et al., "iCaRL", CVPR 2017, section 4 (the last point of the curve).

    Args:
        stream_accuracy: ``(T,)`` values in [0, 1].

    Raises:
        ValueError: no value, or one outside [0, 1].

    >>> last_accuracy([1.0, 0.5, 0.75])
    0.75
    """
    _check_accuracies("stream_accuracy", stream_accuracy)
    return stream_accuracy[-1]


def average_accuracy(accuracy_matrix: AccuracyMatrix) -> float:
    r"""Mean over experiences of the final accuracies; every experience weighs the same.

    .. math:: \mathrm{ACC} = \frac{1}{T} \sum_{i=0}^{T-1} a_{T-1,i}

    It differs from :func:`last_accuracy`, where every sample weighs the same, when experiences
    have unequal test sets (a large base session).

    Source: Lopez-Paz & Ranzato, "Gradient Episodic Memory", NeurIPS 2017, equation 2.

    Raises:
        ValueError: ``accuracy_matrix`` is not lower triangular or has a value outside [0, 1].

    >>> average_accuracy([[1.0], [0.5, 0.75]])
    0.625
    """
    _check_matrix(accuracy_matrix)
    return sum(accuracy_matrix[-1]) / len(accuracy_matrix)


def forgetting(accuracy_matrix: AccuracyMatrix) -> float:
    r"""Mean loss of accuracy between learning an experience and the end, as Avalanche counts it.

    .. math:: F = \frac{1}{T-1} \sum_{i=0}^{T-2} \left(a_{i,i} - a_{T-1,i}\right)

    The reference is the accuracy just after experience ``i`` was learnt, so that
    ``forgetting == -backward_transfer``; :func:`maximum_forgetting` takes the best accuracy ever
    reached instead. A single experience has nothing to forget: 0.

    Source: ``avalanche.evaluation.metrics.StreamForgetting`` (Avalanche 0.6).

    Returns:
        Value in [-1, 1]; negative when old experiences became better.

    Raises:
        ValueError: ``accuracy_matrix`` is not lower triangular or has a value outside [0, 1].

    >>> forgetting([[0.75], [1.0, 1.0], [0.5, 0.5, 1.0]])
    0.375
    """
    _check_matrix(accuracy_matrix)
    final = accuracy_matrix[-1]
    return _mean_or_zero([accuracy_matrix[i][i] - final[i] for i in range(len(final) - 1)])


def maximum_forgetting(accuracy_matrix: AccuracyMatrix) -> float:
    r"""Mean loss of accuracy between the best moment of each experience and the end.

    .. math:: F = \frac{1}{T-1} \sum_{i=0}^{T-2} \max_{i \le t < T-1} a_{t,i} - a_{T-1,i}

    A single experience has nothing to forget: 0.

    Source: Chaudhry et al., "Riemannian Walk", ECCV 2018, section 3 (forgetting measure).

    Returns:
        Value in [-1, 1]; never below :func:`forgetting`.

    Raises:
        ValueError: ``accuracy_matrix`` is not lower triangular or has a value outside [0, 1].

    >>> maximum_forgetting([[0.75], [1.0, 1.0], [0.5, 0.5, 1.0]])
    0.5
    """
    _check_matrix(accuracy_matrix)
    *earlier, final = accuracy_matrix
    best = [max(row[i] for row in earlier[i:]) for i in range(len(earlier))]
    return _mean_or_zero([best[i] - final[i] for i in range(len(earlier))])


def backward_transfer(accuracy_matrix: AccuracyMatrix) -> float:
    r"""Influence of later experiences on the accuracy of earlier ones.

    .. math:: \mathrm{BWT} = \frac{1}{T-1} \sum_{i=0}^{T-2} \left(a_{T-1,i} - a_{i,i}\right)

    A single experience has no later one: 0.

    Source: Lopez-Paz & Ranzato, "Gradient Episodic Memory", NeurIPS 2017, equation 3.

    Returns:
        Value in [-1, 1]; negative when earlier experiences were forgotten.

    Raises:
        ValueError: ``accuracy_matrix`` is not lower triangular or has a value outside [0, 1].

    >>> backward_transfer([[0.75], [1.0, 1.0], [0.5, 0.5, 1.0]])
    -0.375
    """
    _check_matrix(accuracy_matrix)
    final = accuracy_matrix[-1]
    return _mean_or_zero([final[i] - accuracy_matrix[i][i] for i in range(len(final) - 1)])


def expected_calibration_error(
    counts: Sequence[int], correct: Sequence[int], confidence: Sequence[float]
) -> float:
    r"""Mean distance between confidence and accuracy over bins of equal confidence.

    .. math:: \mathrm{ECE} = \sum_{m=1}^{M} \frac{|B_m|}{n}
              \left|\mathrm{acc}(B_m) - \mathrm{conf}(B_m)\right|

    Bins that hold sums rather than means add up over batches and clients;
    :class:`protocl.metrics.history.ReliabilityBins` fills them from logits.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.

    Args:
        counts: ``(M,)`` samples in each bin.
        correct: ``(M,)`` right answers in each bin.
        confidence: ``(M,)`` sum of the predicted classes' probabilities in each bin.

    Returns:
        Value in [0, 1].

    Raises:
        ValueError: lengths differ, or there is no sample.

    >>> expected_calibration_error([0, 2, 2], [0, 1, 2], [0.0, 1.0, 1.5])
    0.125
    """
    if not len(counts) == len(correct) == len(confidence):
        raise ValueError(
            "expected_calibration_error: counts, correct and confidence must have one value a bin, "
            f"got {len(counts)}, {len(correct)} and {len(confidence)}"
        )
    total = sum(counts)
    if total == 0:
        raise ValueError("expected_calibration_error: the bins hold no sample")
    gaps = (abs(right - sure) for right, sure in zip(correct, confidence, strict=True))
    return math.fsum(gaps) / total


def mean_and_spread(values: Sequence[float]) -> MeanAndSpread:
    r"""Mean and sample standard deviation, for results over seeds.

    .. math:: s = \sqrt{\frac{1}{n-1} \sum_{j=1}^{n} (x_j - \bar x)^2}

    Raises:
        ValueError: no value.

    >>> mean_and_spread([1.0, 2.0, 3.0])
    MeanAndSpread(mean=2.0, std=1.0, n=3)
    >>> mean_and_spread([0.5])
    MeanAndSpread(mean=0.5, std=None, n=1)
    """
    if not values:
        raise ValueError("mean_and_spread: expected at least one value, got none")
    std = statistics.stdev(values) if len(values) > 1 else None
    return MeanAndSpread(statistics.fmean(values), std, len(values))


def _mean_or_zero(values: Sequence[float]) -> float:
    # A plain left-to-right sum, as Avalanche's Mean does it: equal to the last digit.
    return sum(values) / len(values) if values else 0.0


def _check_accuracies(name: str, values: Sequence[float]) -> None:
    if not values:
        raise ValueError(f"{name}: expected at least one accuracy, got none")
    for value in values:
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}: accuracies lie in [0, 1], got {value}")


def _check_matrix(accuracy_matrix: AccuracyMatrix) -> None:
    if not accuracy_matrix:
        raise ValueError("accuracy_matrix: expected at least one row, got none")
    for t, row in enumerate(accuracy_matrix):
        if len(row) != t + 1:
            raise ValueError(
                f"accuracy_matrix: row {t} must hold the accuracies of experiences 0 to {t} "
                f"({t + 1} values), got {len(row)}"
            )
        _check_accuracies(f"accuracy_matrix row {t}", row)
