"""Probabilities from logits: one temperature, and how sure to be at which confidence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from protocl.heads.probabilities.table import UNIT, CalibrationTable, beta_of, centres, log_odds
from protocl.tracing import exporting

_LOOSE = 1e-3
"""Nats a sample by which a flatter temperature may be worse than the best."""

_OCTAVES = 40.0
"""Powers of two around ``beta`` within which the temperature of a sample is sought."""

_PIECE = 1 << 20
"""Logits whose temperatures are sought at once."""


class Calibration(NamedTuple):
    """The parameters that turn logits into calibrated probabilities.

    The largest of ``softmax(beta s)`` is a sample's *raw* confidence ``r``; what it is worth is
    ``sigmoid(slope * log(r / (1 - r)) + offset)``, at most ``ceiling``. The probabilities are
    ``softmax(tau s)`` with the ``tau`` of the sample at which the largest is just that, so their
    order is the order of the logits.

    Source: Guo et al. 2017, "On calibration of modern neural networks" (temperature); Platt 1999,
    "Probabilistic outputs for support vector machines" (slope and offset).
    """

    beta: float
    slope: float
    offset: float
    ceiling: float


def fit_calibration(table: CalibrationTable, samples: int) -> Calibration:
    """The calibration under which a table's samples are most probable.

    Args:
        table: scores of samples that the head was not fitted to.
        samples: number behind the head. By the rule of succession nothing is surer than
            ``(n + 1) / (n + 2)``.

    Raises:
        ValueError: the table holds no sample.
    """
    if table.samples == 0:
        raise ValueError(
            "the calibration table holds no sample: each class needs two samples or more, so that "
            "one can be left out"
        )
    allowed = int(table.losses.min()) + _LOOSE / UNIT * table.samples
    k = int((table.losses <= allowed).nonzero()[0])
    slope, offset = _platt(table.counts[k].double(), table.correct[k].double())
    return Calibration(beta_of(table.start + k), slope, offset, (samples + 1) / (samples + 2))


def _platt(counts: Tensor, correct: Tensor) -> tuple[float, float]:
    """Slope and offset of a logistic regression on the bins, drawn weakly towards 1 and 0."""
    inputs = torch.stack([centres(), torch.ones_like(counts)])
    prior = weights = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for _ in range(50):
        chance = (weights @ inputs).sigmoid()
        gradient = inputs @ (correct - counts * chance) - (weights - prior)
        curvature = (inputs * (counts * chance * (1 - chance))) @ inputs.T
        step = torch.linalg.solve(curvature + torch.eye(2, dtype=torch.float64), gradient)
        weights = weights + step.clamp(-1, 1)
    if weights[0] > 0:
        return float(weights[0]), float(weights[1])
    # Confidence says nothing here, so every sample gets the share of right answers.
    share = (correct.sum() + 1) / (counts.sum() + 2)
    return 0.0, float(share.logit())


def probabilities(logits: Tensor, calibration: Calibration) -> Tensor:
    """``(N, C)`` float64 probabilities whose order in each row is that of ``logits``."""
    if exporting():
        return _tempered(logits.double(), calibration)
    result = torch.empty(logits.shape, dtype=torch.float64, device=logits.device)
    step = max(1, _PIECE // max(1, logits.shape[1]))
    for scores, out in zip(logits.split(step), result.split(step), strict=True):
        out.copy_(_tempered(scores.double(), calibration))
        raise_winners_(out, scores)
    return result


def raise_winners_(chances: Tensor, scores: Tensor) -> None:
    """Make the first of the largest scores of each row the first of the largest chances, in place.

    Scores that differ in their last digits may have chances that are rounded alike.

    Args:
        chances: ``(N, C)``, in the order of the scores but for such ties.
        scores: ``(N, C)``.
    """
    if scores.numel() == 0:
        return
    winners = scores.argmax(1)  # the first of equal ones, as torch documents
    tied = (chances.argmax(1) != winners).nonzero()[:, 0]
    if len(tied):
        most = chances[tied].amax(1)
        chances[tied, winners[tied]] = torch.nextafter(most, torch.full_like(most, torch.inf))


def _tempered(scores: Tensor, calibration: Calibration) -> Tensor:
    if scores.shape[1] == 1 or (not exporting() and scores.numel() == 0):
        return torch.ones_like(scores)
    gaps = scores - scores.max(1, keepdim=True).values
    raw = (gaps * calibration.beta).log_softmax(1).max(1, keepdim=True).values
    worth = (calibration.slope * log_odds(raw) + calibration.offset).sigmoid()
    worth = worth.clamp(max=calibration.ceiling)
    low = torch.full_like(raw, -_OCTAVES)
    width = 2 * _OCTAVES
    for _ in range(48):  # bisection of the exponent, to 3e-13 octaves
        width /= 2
        middle = low + width
        least = 1 / (gaps * (calibration.beta * middle.exp2())).exp().sum(1, keepdim=True)
        low = torch.where(least < worth, middle, low)
    return (gaps * (calibration.beta * low.exp2())).softmax(1)
