"""From which score on a sample counts as known, and what that was found with."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple, Self

from torch import Tensor

from protocl.errors import CalibrationWarning
from protocl.memory import PrototypeMemory
from protocl.open_world.scores.base import Score
from protocl.open_world.scores.every import registered
from protocl.open_world.thresholds import ScoreHistogram

KEEP = 0.95
AGAIN = "calibrate again (protocl calibrate, or calibrate_unknown)"
_MISSING = (
    "not calibrated, or samples were forgotten since, which ends a calibration: give labelled "
    "samples that were not taught to protocl calibrate, or to calibrate_unknown"
)


@dataclass(frozen=True)
class ScoreCalibration:
    """How high known samples score that a memory had not seen.

    Attributes:
        score: name of a registered score (``protocl list scores``).
        keep: share of those samples that counts as known.
        histogram: of their scores.
        samples, classes: that the memory had.
    """

    score: str
    keep: float
    histogram: ScoreHistogram
    samples: int
    classes: int

    @classmethod
    def of(
        cls,
        score: str,
        memory: PrototypeMemory,
        features: Tensor,
        labels: Tensor,
        *,
        keep: float = KEEP,
        taught: bool = False,
    ) -> Self:
        """Score samples of known classes by a memory without them.

        Args:
            score: name of a registered score.
            memory: what is known.
            features: ``(N, D)``.
            labels: ``(N,)`` their class ids.
            keep: share of the samples that is to count as known, above 0 and at most 1.
            taught: the memory holds them, so that each part of them is left out in turn
                (:meth:`.ScoreHistogram.of`); else it has never seen them.

        Raises:
            ConfigError: no score has that name.
            ValueError: there is no sample, ``keep`` is out of range, or the memory lacks samples,
                or what the score needs.

        Warns:
            CalibrationWarning: with so few samples none of them should count as unknown.
            PrecisionWarning: as :meth:`.ScoreHistogram.threshold`.
        """
        part = registered(score)
        if taught:
            histogram = ScoreHistogram.of(part, memory, features, labels)
        else:
            histogram = ScoreHistogram.held_out(part, memory, features)
        histogram.threshold(keep)  # refuses and warns
        if 0 < histogram.samples * (1 - keep) < 1 - 1e-9:
            warnings.warn(
                f"{histogram.samples} samples are too few to tell where {100 * keep:g} % of them "
                f"lie: give {math.ceil(1 / (1 - keep) - 1e-9)} or more",
                CalibrationWarning,
                stacklevel=3,
            )
        return cls(score, float(keep), histogram, memory.total, len(memory))

    def lapsed(self, memory: PrototypeMemory) -> str:
        """How ``memory`` has changed since, in words; empty if it has not."""
        more, new = memory.total - self.samples, len(memory) - self.classes
        if more > 0:
            of_new = f" ({new} new {'class' if new == 1 else 'classes'})" if new > 0 else ""
            samples = f"{more:,} {'sample' if more == 1 else 'samples'}"
            return f"calibrated before {samples}{of_new} {'was' if more == 1 else 'were'} added"
        if more or new or not self.histogram.fits(registered(self.score), memory):
            return "calibrated for other statistics than these"
        return ""


class Verdict(NamedTuple):
    """Whether a sample counts as unknown, by a score.

    Attributes:
        score: its name.
        value: what it gives the sample, high for known; None where the memory keeps too little.
        is_unknown: None where it is not calibrated.
        note: what is wrong with the calibration, and what to do; empty if nothing is.
    """

    score: str
    value: float | None
    is_unknown: bool | None
    note: str


class Judge:
    """Tells unknown from known samples by a score.

    Args:
        name: of a registered score.
        calibration: by which; None if there is none, or it is of another score.
        memory: what is known; what is told is of its present state.

    Attributes:
        note: as of a :class:`Verdict`.

    Raises:
        ConfigError: no score has that name.
    """

    def __init__(
        self, name: str, calibration: ScoreCalibration | None, memory: PrototypeMemory
    ) -> None:
        self.name = name
        self.calibration = None
        self.score: Score | None = registered(name)
        if lacking := self.score.lacks(memory):
            self.score, self.note = None, lacking
        elif calibration is None or calibration.score != name:
            self.score.fit(memory)
            self.note = _MISSING
        else:
            self.score.fit(memory)
            self.calibration = calibration
            lapsed = calibration.lapsed(memory)
            self.note = f"{lapsed}: {AGAIN}" if lapsed else ""

    def __call__(self, features: Tensor) -> tuple[Tensor | None, list[Verdict]]:
        """Shares ``(N,)`` of known samples that score higher, and verdicts, of ``(N, D)``."""
        if self.score is None:
            return None, [Verdict(self.name, None, None, self.note)] * len(features)
        values = self.score(features).double()
        if self.calibration is None:
            return None, [Verdict(self.name, v, None, self.note) for v in values.tolist()]
        above = self.calibration.histogram.share_above(values)
        strange = (above >= self.calibration.keep).tolist()
        return above, [
            Verdict(self.name, value, is_unknown, self.note)
            for value, is_unknown in zip(values.tolist(), strange, strict=True)
        ]
