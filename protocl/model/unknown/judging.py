"""How a classifier tells what it does not know."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from protocl.errors import CalibrationWarning
from protocl.heads.bayesian.head import BayesianPrototypes
from protocl.memory import PrototypeMemory
from protocl.model.labels import Labels, like
from protocl.open_world.calibration import KEEP, Judge, ScoreCalibration, Verdict
from protocl.open_world.scores import known_scores

Scores = NDArray[np.float64]


class Judging:
    """Tells unknown samples by a probability, or by a score and its calibration.

    Attributes:
        classes_: ``(C,)`` labels of the classes with samples, sorted.
        memory_: the statistics.
        unknown_score: name of a registered score; None for the probability.
        calibration_: from which score on a sample counts as known; None where there is none.
    """

    classes_: Labels
    memory_: PrototypeMemory
    unknown_score: str | None
    calibration_: ScoreCalibration | None = None
    _rival: tuple[str, BayesianPrototypes] | None = None
    """Tells how unknown samples are: for the revision of the memory that it is fitted to."""
    _judging: tuple[object, Judge] | None = None
    """Tells it by a score, likewise."""

    @abstractmethod
    def _features(self, X: Any) -> Tensor:
        """Features ``(N, D)`` of samples, checked."""

    @abstractmethod
    def _checked(self, X: Any, y: ArrayLike, *, reset: bool) -> tuple[NDArray[Any], Labels]:
        """Features and labels of samples, checked."""

    @abstractmethod
    def _ids(self, labels: Labels) -> Tensor:
        """Class ids ``(N,)`` of labels."""

    @property
    @abstractmethod
    def says_how_sure(self) -> bool:
        """Whether the memory keeps enough for probabilities."""

    @abstractmethod
    def _require_scatter(self) -> None:
        """Refuse where it does not."""

    def calibrate_unknown(
        self, X: Any, y: ArrayLike, *, keep: float = KEEP, taught: bool = False
    ) -> Self:
        """Find from which ``unknown_score`` on a sample counts as unknown.

        Nothing is learned. The calibration is of what is known now: when more is learned it is
        still used, and every answer says so; when samples are forgotten it is dropped.

        Args:
            X: samples of known classes that were *not* taught; taught ones look too well known.
            y: their labels.
            keep: share of them that is to count as known, above 0 and at most 1.
            taught: they were taught, so that each twentieth of them is left out in turn.

        Raises:
            ConfigError: no score is registered under the name in ``unknown_score``.
            ValueError: it is None, whose probability needs none; a label is not known; or as
                :meth:`.ScoreCalibration.of`.

        Warns:
            CalibrationWarning, PrecisionWarning: as there.
        """
        check_is_fitted(self, "memory_")
        if self.unknown_score is None:
            raise ValueError(
                "unknown_score=None: its probability needs no calibration; choose a score first, "
                "such as set_params(unknown_score='evidence')"
            )
        features, labels = self._checked(X, y, reset=False)
        labels = like(labels, self.classes_)
        strange = np.setdiff1d(labels, self.classes_)
        if len(strange):
            raise ValueError(
                f"classes {strange.tolist()} are not known: what counts as known is found from "
                "samples of known classes; leave them out, or teach some of them first"
            )
        self.calibration_ = ScoreCalibration.of(
            self.unknown_score, self.memory_, torch.from_numpy(features), self._ids(labels),
            keep=keep, taught=taught,
        )  # fmt: skip
        return self

    def unknown(self, X: Any) -> Scores:
        """How unknown samples are, ``(N,)`` from 0 to 1.

        Without ``unknown_score`` the probability that a sample belongs to a class never learned:
        one more class, of which only the scatter and spread of the others is known, competes with
        them (:meth:`.BayesianPrototypes.unknown_probability`), whatever the head, on features
        under the head's map.

        With it, the share of the samples of :meth:`calibrate_unknown` that score higher; a sample
        counts as unknown from ``keep`` on.

        Raises:
            ValueError: the memory keeps too little for it, knows one class only, or the score is
                not calibrated.

        Warns:
            CalibrationWarning: more was learned since the score was calibrated.
        """
        features = self._features(X)
        if self.unknown_score is not None:
            return self._share_above(features)
        self._require_scatter()
        if len(self.classes_) < 2:
            raise ValueError(
                "one class is known, so that nothing tells how classes lie apart, and what another "
                "would look like: learn samples of a second one"
            )
        return self._strangeness(features)

    def known_scores(self, X: Any) -> dict[str, Scores]:
        """How well known samples look, ``(N,)`` by name of the score, high for known.

        Every score (``protocl list scores``) that the memory allows. They are no probabilities:
        on many classes they rank better than that of :meth:`unknown`, which says how sure it is.
        """
        found = known_scores(self.memory_, self._features(X))
        return {name: score.double().numpy() for name, score in found.items()}

    @property
    def unknown_note(self) -> str:
        """What is wrong with the calibration of ``unknown_score``, and what to do; often empty."""
        if self.unknown_score is None or not len(self.classes_):
            return ""
        return self._judge(self.unknown_score).note

    def _judged(self, features: Tensor) -> tuple[Scores | None, list[Verdict] | None]:
        """How unknown samples are, if anything tells, and verdicts, if there is a score."""
        if self.unknown_score is None:
            sure = self.says_how_sure and len(self.classes_) > 1
            return (self._strangeness(features) if sure else None), None
        above, verdicts = self._judge(self.unknown_score)(features)
        return (None if above is None else above.numpy()), verdicts

    def _share_above(self, features: Tensor) -> Scores:
        above, _ = self._judged(features)
        if above is None:
            raise ValueError(f"unknown_score={self.unknown_score!r}: {self.unknown_note}")
        if self.unknown_note:
            warnings.warn(
                f"unknown by {self.unknown_score}: {self.unknown_note}",
                CalibrationWarning,
                stacklevel=3,
            )
        return above

    def _judge(self, name: str) -> Judge:
        now = name, self.calibration_, self.memory_.revision
        if self._judging is None or self._judging[0] != now:
            self._judging = now, Judge(name, self.calibration_, self.memory_)
        return self._judging[1]

    def _strangeness(self, features: Tensor) -> Scores:
        if self._rival is None or self._rival[0] != self.memory_.revision:
            self._rival = self.memory_.revision, _rival_of(self.memory_.at_level("shared"))
        mapped = self.memory_.feature_map(features)
        return cast(Scores, self._rival[1].unknown_probability(mapped).numpy())


def _rival_of(known: PrototypeMemory) -> BayesianPrototypes:
    """The posterior predictive of mapped samples, fitted to statistics of level ``shared``."""
    plain = PrototypeMemory(known.width, "shared", exact=known.exact, step=known.step)
    rival = BayesianPrototypes(covariance="full", dtype=torch.float64)
    return rival.fit(PrototypeMemory.from_parts(plain, known.parts()))
