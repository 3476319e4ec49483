"""How sure a head was and how often it was right, in whole numbers that add up over clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

STEPS = 40
"""Inverse temperatures that a table covers, a factor of sqrt(2) apart: twenty octaves."""

EDGE = 8.0
"""Largest log-odds of a confidence that have a bin of their own: 0.99966."""

BINS = 64
"""Bins of equal width in log-odds between ``-EDGE`` and ``EDGE``."""

UNIT = 2.0**-16
"""Unit of the losses, in nats."""

_MOST = 2.0**20
"""Largest loss of one sample, in nats."""

_PIECE = 1 << 20
"""Logits whose probabilities are held at once."""


@dataclass(frozen=True)
class CalibrationTable:
    """Counts of confidences and right answers at each of :data:`STEPS` inverse temperatures.

    A confidence is the largest of the probabilities ``softmax(beta s)`` of the logits ``s``.
    Clients make tables of their own samples by :meth:`protocl.heads.Head.calibration_table`; tables
    of the same head and memory add up, in whole numbers, so in any order.

    Attributes:
        origin: digest of the memory and of the head's settings: what the table belongs to.
        start: ``beta_k = 2^((start + k) / 2)``.
        losses: ``(STEPS,)`` int64, sums of ``-log p(right class)`` in units of :data:`UNIT` nats.
        counts: ``(STEPS, BINS)`` int64 samples by the log-odds of their confidence.
        correct: ``(STEPS, BINS)`` int64 right answers among them.
    """

    origin: str
    start: int
    losses: Tensor
    counts: Tensor
    correct: Tensor

    @classmethod
    def of(cls, logits: Tensor, rows: Tensor, *, start: int, origin: str = "") -> CalibrationTable:
        """The table of ``logits`` ``(N, C)`` whose right columns are ``rows`` ``(N,)``."""
        losses = torch.zeros(STEPS, dtype=torch.int64)
        counts, correct = torch.zeros(2, STEPS, BINS, dtype=torch.int64)
        step = max(1, _PIECE // max(1, logits.shape[1]))
        for scores, right in zip(logits.cpu().split(step), rows.cpu().split(step), strict=True):
            for k in range(STEPS if len(right) else 0):
                found = (scores.double() * beta_of(start + k)).log_softmax(1)
                loss, bins, hits = _judged(found, right)
                losses[k] += loss
                counts[k] += torch.bincount(bins, minlength=BINS)
                correct[k] += torch.bincount(bins[hits], minlength=BINS)
        return cls(origin, start, losses, counts, correct)

    @property
    def samples(self) -> int:
        """Number of samples behind the table."""
        return int(self.counts[0].sum())

    def __add__(self, other: CalibrationTable) -> CalibrationTable:
        if not isinstance(other, CalibrationTable):
            raise TypeError(
                f"the other is a {type(other).__name__}: expected a CalibrationTable, as "
                "head.calibration_table makes it"
            )
        self.require(other.origin, other.start)
        return CalibrationTable(
            self.origin,
            self.start,
            self.losses + other.losses,
            self.counts + other.counts,
            self.correct + other.correct,
        )

    def __radd__(self, other: int) -> Self:
        """``sum(tables)``, which begins with 0."""
        return self if other == 0 else NotImplemented

    def require(self, origin: str, start: int) -> None:
        """Refuse what belongs to other statistics or to another head.

        Raises:
            ValueError: ``origin`` or ``start`` differ from the table's.
        """
        if (self.origin, self.start) != (origin, start):
            raise ValueError(
                f"a calibration table of memory and head {self.origin[:8]} does not fit those of "
                f"{origin[:8]}: it lapses when the memory changes; make it anew by "
                "head.calibration_table(memory, features, labels)"
            )

    def to_dict(self) -> dict[str, Any]:
        """Lists and numbers, for JSON or a message; :meth:`from_dict` reads them back."""
        arrays = {name: getattr(self, name).tolist() for name in ("losses", "counts", "correct")}
        return {"origin": self.origin, "start": self.start, **arrays}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> CalibrationTable:
        """Read what :meth:`to_dict` wrote.

        Raises:
            ValueError: an array has the wrong shape, or the counts are impossible.
        """
        losses, counts, correct = (
            torch.as_tensor(state[name], dtype=torch.int64)
            for name in ("losses", "counts", "correct")
        )
        shapes = [tuple(array.shape) for array in (losses, counts, correct)]
        if shapes != [(STEPS,), (STEPS, BINS), (STEPS, BINS)]:
            raise ValueError(
                f"a calibration table has shapes {shapes}: expected ({STEPS},) and twice "
                f"({STEPS}, {BINS})"
            )
        if bool((losses < 0).any() | (correct < 0).any() | (correct > counts).any()):
            raise ValueError("a calibration table holds more right answers than samples, or < 0")
        return cls(str(state["origin"]), int(state["start"]), losses, counts, correct)


def beta_of(exponent: int) -> float:
    """The inverse temperature ``2^(exponent / 2)`` of a column of the table."""
    return float(2.0 ** (exponent / 2))


def centres() -> Tensor:
    """``(BINS,)`` log-odds in the middle of the bins."""
    width = 2 * EDGE / BINS
    return torch.arange(BINS, dtype=torch.float64) * width + width / 2 - EDGE


def log_odds(log_probabilities: Tensor) -> Tensor:
    """``log(p / (1 - p))`` of ``log p``, within plus and minus :data:`EDGE`."""
    odds = log_probabilities - (-torch.expm1(log_probabilities)).log()
    return odds.clamp(-EDGE, EDGE)


def _judged(log_probabilities: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of losses, bin of each sample, and whether its answer was right."""
    best, answers = log_probabilities.max(1)
    own = log_probabilities.gather(1, right[:, None]).neg().clamp(max=_MOST)
    bins = ((log_odds(best) + EDGE) * (BINS / (2 * EDGE))).long().clamp(max=BINS - 1)
    return (own / UNIT).round().long().sum(), bins, answers == right
