"""How well a score, high for known, tells samples of known classes from unknown ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Detection:
    """What one score achieves, each number in [0, 1].

    Attributes:
        auroc: probability that a known sample scores above an unknown one, ties one half.
        fpr95: share of unknown samples accepted where 95 % of the known ones are.
        fpr95_unknown: share of known samples rejected where 95 % of the unknown ones are: the
            other convention, in which unknown is what is looked for.
        aupr_unknown: average precision with unknown as what is looked for.
    """

    auroc: float
    fpr95: float
    fpr95_unknown: float
    aupr_unknown: float


def best_in_words(aurocs: Mapping[str, float]) -> str:
    """The score that tells best, behind a comma; empty without any.

    Args:
        aurocs: by name of the score.

    >>> best_in_words({"distance": 0.8, "evidence": 0.91})
    ', AUROC at most 0.910 (evidence)'
    """
    best = max(aurocs, key=aurocs.__getitem__, default="")
    return f", AUROC at most {aurocs[best]:.3f} ({best})" if best else ""


def detection(known: ArrayLike, unknown: ArrayLike) -> Detection:
    """All measures of one score.

    Args:
        known: ``(N,)`` scores of samples of known classes.
        unknown: ``(M,)`` of others.

    Raises:
        ValueError: one of them is empty, or holds NaN.

    >>> detection([2.0, 3.0], [1.0, 2.5])
    Detection(auroc=0.75, fpr95=0.5, fpr95_unknown=0.5, aupr_unknown=0.8333333333333333)
    """
    high, low = _scores("known", known), _scores("unknown", unknown)
    return Detection(
        auroc(high, low),
        fpr_at_recall(high, low),
        fpr_at_recall(-low, -high),
        average_precision(-low, -high),
    )


def auroc(known: ArrayLike, unknown: ArrayLike) -> float:
    """Probability that a known sample scores above an unknown one, ties counting one half.

    >>> auroc([2.0, 3.0], [1.0, 2.5])
    0.75
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_labelled(known, unknown)))


def average_precision(positive: ArrayLike, negative: ArrayLike) -> float:
    """Mean of the precisions at each positive sample, with scores high for positive.

    Published code often joins the points of the curve by straight lines, which differs by up to
    two points on a few dozen samples.

    >>> average_precision([3.0, 1.0], [2.0])
    0.8333333333333333
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(*_labelled(positive, negative)))


def fpr_at_recall(positive: ArrayLike, negative: ArrayLike, recall: float = 0.95) -> float:
    """Share of negative samples accepted at the threshold that keeps ``recall`` of the positive.

    The threshold is the highest score of a positive sample at which at least that share of them
    is accepted.

    >>> fpr_at_recall([1.0, 2.0, 3.0, 4.0], [0.5, 2.5], recall=0.75)
    0.5
    """
    kept = np.sort(_scores("positive", positive))
    # Rounded first: 0.05 * 20 is a little above 1 in floating point.
    threshold = kept[int(np.floor(round((1 - recall) * len(kept), 9)))]
    return float((_scores("negative", negative) >= threshold).mean())


def _labelled(
    positive: ArrayLike, negative: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    high, low = _scores("positive", positive), _scores("negative", negative)
    return np.r_[np.ones(len(high)), np.zeros(len(low))], np.r_[high, low]


def _scores(name: str, values: ArrayLike) -> NDArray[np.float64]:
    scores = np.asarray(values, np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"{name}: expected a vector of one score or more, got {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"{name}: {int(np.isnan(scores).sum())} scores are NaN")
    return scores
