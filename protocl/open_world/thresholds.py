"""At which score a sample counts as known: additive histograms of left-out known samples."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from protocl.config.validation import is_number
from protocl.errors import PrecisionWarning
from protocl.heads.probabilities.calibrate import origin_of
from protocl.heads.probabilities.left_out import left_out_parts
from protocl.memory import PrototypeMemory
from protocl.open_world.scores.base import Score

BINS = 8192
_FINEST = 1e-3
"""Below it bins have equal width; above, their width grows with the score."""
_LARGEST = 1e9


@dataclass(frozen=True)
class ScoreHistogram:
    """How many known samples score how high, in bins that are the same for everybody.

    A client makes one of its own samples; histograms of one score and memory add up and can be
    subtracted. Scores of one sign and size share a bin to 0.8 %.

    Attributes:
        origin: digest of memory and score; once classes are added the histogram is stale.
        counts: ``(BINS,)`` int64.
    """

    origin: str
    counts: Tensor

    @classmethod
    def of(
        cls,
        score: Score,
        memory: PrototypeMemory,
        features: Tensor,
        labels: Tensor,
        *,
        parts: int = 20,
    ) -> ScoreHistogram:
        """Score samples that are in ``memory`` by the rest of it.

        Args:
            score: settings of the score; a fitted one stays as it is.
            memory: the merged statistics, these samples among them.
            features: ``(N, D)``.
            labels: ``(N,)`` their classes.
            parts: into how many parts the samples are divided, each of which is left out in turn
                at the cost of a fit. The only sample of a class is passed over.

        Raises:
            ValueError: the batch does not fit, holds classes or samples that the memory does not
                have, or the memory lacks what the score needs.
        """
        twin = type(score)(**score.get_params())
        counts = torch.zeros(BINS, dtype=torch.int64)
        for _, samples, rest in left_out_parts(memory, features, labels, parts):
            counts += _counted(twin.fit(rest)(samples))
        return cls(origin_of(score, memory), counts)

    @classmethod
    def held_out(cls, score: Score, memory: PrototypeMemory, features: Tensor) -> ScoreHistogram:
        """Score samples of known classes that ``memory`` has never seen.

        Args:
            score: settings of the score; a fitted one stays as it is.
            memory: the merged statistics.
            features: ``(N, D)``. Samples that are in the memory would score too high.

        Raises:
            ValueError: the features do not fit, or the memory lacks what the score needs.
        """
        twin = type(score)(**score.get_params()).fit(memory)
        return cls(origin_of(score, memory), _counted(twin(features)))

    @property
    def samples(self) -> int:
        """Number of samples behind it."""
        return int(self.counts.sum())

    def threshold(self, keep: float = 0.95) -> float:
        """Largest edge of a bin at or above which ``keep`` of the known samples score.

        Args:
            keep: above 0 and at most 1.

        Raises:
            ValueError: there is no sample, or ``keep`` is out of range.

        Warns:
            PrecisionWarning: less than half of what should score below does, since the bins do not
                tell the scores apart: those of a distance between tiny or huge features, or of
                probabilities near 1.
        """
        if not (is_number(keep) and 0 < keep <= 1):
            raise ValueError(f"keep={keep!r}: expected a share above 0 and at most 1")
        if not self.samples:
            raise ValueError("no known sample was scored, so that there is no threshold")
        above = self.counts.flip(0).cumsum(0).flip(0)
        # Rounded up, but not for the last digit of a product such as 0.95 * 20.
        wanted = -int(-(keep * self.samples - 1e-9) // 1)
        place = int((above >= wanted).nonzero()[-1])
        self._warn_of_coarse_bins(self.samples - wanted, self.samples - int(above[place]))
        return float(edges()[place])

    def _warn_of_coarse_bins(self, asked: int, below: int) -> None:
        """Warn where a threshold rejects too few of ``asked`` known samples."""
        if asked - below > max(1, asked / 2):
            warnings.warn(
                f"the threshold keeps {self.samples - below} of {self.samples} known samples where "
                f"{self.samples - asked} were asked for: bins are 0.8 % wide, and too coarse for "
                f"these scores below {_FINEST:g}, above {_LARGEST:g} or close to each other; scale "
                "the features to a standard deviation near 1, or take another score",
                PrecisionWarning,
                stacklevel=3,
            )

    def share_below(self, scores: Tensor) -> Tensor:
        """Share ``(N,)`` of the known samples that score below, of scores ``(N,)``."""
        below = self.counts.cumsum(0) - self.counts
        return below[_bins(scores)].double() / max(self.samples, 1)

    def share_above(self, scores: Tensor) -> Tensor:
        """Share ``(N,)`` of the known samples in higher bins than scores ``(N,)``.

        It is ``keep`` or more for just the scores below ``threshold(keep)``.
        """
        above = self.counts.flip(0).cumsum(0).flip(0) - self.counts
        return above[_bins(scores)].double() / max(self.samples, 1)

    def fits(self, score: Score, memory: PrototypeMemory) -> bool:
        """Whether it was made with this score by this very memory."""
        return self.origin == origin_of(score, memory)

    def require(self, score: Score, memory: PrototypeMemory) -> None:
        """Refuse to serve another memory or score than that of the samples.

        Raises:
            ValueError: the memory has changed since, or the score is another.
        """
        self._require(origin_of(score, memory))

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        self._require(other.origin)
        return replace(self, counts=self.counts + other.counts)

    def __radd__(self, other: int) -> ScoreHistogram:
        """``sum(histograms)``, which begins with 0."""
        return self if other == 0 else NotImplemented

    def __sub__(self, other: ScoreHistogram) -> ScoreHistogram:
        self._require(other.origin)
        left = self.counts - other.counts
        if bool((left < 0).any()):
            raise ValueError("the other histogram holds samples that were never added to this one")
        return replace(self, counts=left)

    def to_dict(self) -> dict[str, Any]:
        """Origin, and the bins that hold samples with their counts; for JSON or a message."""
        bins = self.counts.nonzero()[:, 0]
        return {"origin": self.origin, "bins": bins.tolist(), "counts": self.counts[bins].tolist()}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> ScoreHistogram:
        """Read what :meth:`to_dict` wrote.

        Raises:
            ValueError: bins or counts are missing or impossible.
        """
        if missing := {"origin", "bins", "counts"} - set(state):
            raise ValueError(f"a histogram of scores lacks {sorted(missing)}")
        bins, counts = (_whole(name, state[name]) for name in ("bins", "counts"))
        if bins.shape != counts.shape or bool(((bins < 0) | (bins >= BINS) | (counts < 1)).any()):
            raise ValueError(
                f"a histogram of scores has bins 0 to {BINS - 1} and as many counts from 1"
            )
        full = torch.zeros(BINS, dtype=torch.int64).index_add(0, bins, counts)
        return cls(str(state["origin"]), full)

    def _require(self, origin: str) -> None:
        if self.origin != origin:
            raise ValueError(
                f"a histogram of memory and score {self.origin[:8]} does not fit those of "
                f"{origin[:8]}: it lapses when the memory changes; make it anew by "
                "ScoreHistogram.of(score, memory, features, labels)"
            )


def _whole(name: str, values: Any) -> Tensor:
    """Whole numbers ``(n,)`` of a message."""
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise ValueError(f"{name} of a histogram of scores are {values!r}: expected whole numbers")
    return torch.tensor(values, dtype=torch.int64)


def edges() -> Tensor:
    """``(BINS,)`` lower edge of each bin, the first minus infinity."""
    lower = torch.arange(BINS, dtype=torch.float64) * _width() - _span()
    found = lower.sinh() * _FINEST
    found[0] = -torch.inf
    return found


def _counted(scores: Tensor) -> Tensor:
    """How many scores ``(N,)`` lie in each bin, ``(BINS,)``."""
    return torch.bincount(_bins(scores).cpu(), minlength=BINS)


def _bins(scores: Tensor) -> Tensor:
    places = ((scores.double() / _FINEST).asinh() + _span()) / _width()
    return places.floor().clamp(0, BINS - 1).long()


def _span() -> float:
    return float(torch.tensor(_LARGEST / _FINEST, dtype=torch.float64).asinh())


def _width() -> float:
    return 2 * _span() / BINS
