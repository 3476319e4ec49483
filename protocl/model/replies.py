"""What a classifier that remembers answers: classes, scores, probabilities, and how unknown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocl.heads.base import Head
from protocl.model.guesses import Guesses, ranked
from protocl.model.labels import Labels
from protocl.model.unknown.judging import Judging
from protocl.open_world.explanation.explanation import (
    Explanation,
    NearPrototype,
    NearSample,
    PrototypeUncertainty,
    nearest_samples,
)

Scores = NDArray[np.float64]


class Replies(Judging):
    """Answers from a head over a memory.

    Attributes:
        classes_: ``(C,)`` labels of the classes with samples, sorted.
        ids_: ``(C,)`` the ids that these classes have in the memory.
        memory_: the statistics.
        head_: the head.
    """

    ids_: NDArray[np.int64]
    head_: Head
    _doubt: tuple[str, PrototypeUncertainty] | None = None
    """Tells kinds of uncertainty: for the revision of the memory that it is fitted to."""

    def predict(self, X: Any) -> Labels:
        """Labels ``(N,)`` of samples ``(N, D)``; the first of ``classes_`` among equal scores."""
        best = self.scores(X).argmax(1)
        return cast(Labels, self.classes_[best])

    def decision_function(self, X: Any) -> Scores:
        """Scores ``(N, C)``, columns as ``classes_``; of two classes ``(N,)``, > 0: the second."""
        logits = self.scores(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> Scores:
        """Calibrated probabilities ``(N, C)``, columns as ``classes_``, rows that sum to one.

        Raises:
            ValueError: the memory keeps too little for it.
        """
        return self._chances(self._features(X))

    def scores(self, X: Any) -> Scores:
        """What the head gives each class, ``(N, C)``, columns as ``classes_``."""
        return self._scores(self._features(X))

    def guesses(self, X: Any, top: int = 5) -> list[Guesses]:
        """The best classes of each sample, how sure each is, and how unknown the sample.

        Args:
            X: samples.
            top: classes of each.
        """
        return self._ranked(self._features(X), top)

    def explain(
        self, X: Any, top: int = 5, *, stored: Any = None, labels: Sequence[Any] = ()
    ) -> list[Explanation]:
        """Why each sample is answered so.

        Args:
            X: samples.
            top: prototypes and stored samples of each.
            stored: samples that are at hand, such as some that were taught; None for none.
            labels: their classes.

        Raises:
            ValueError: ``top`` is less than 1, or there is not one label a stored sample.
        """
        features = self._features(X)
        mapped = self.memory_.feature_map(features).double()
        near = self._near_samples(mapped, stored, labels, top)
        kinds = self._uncertainties(features)
        found = zip(self._ranked(features, top), mapped, near, kinds, strict=True)
        return [
            Explanation(
                self._prototypes(each, point),
                samples,
                total,
                aleatoric,
                epistemic,
                each.unknown,
                each.verdict,
            )
            for each, point, samples, (total, aleatoric, epistemic) in found
        ]

    @property
    def says_how_sure(self) -> bool:
        """Whether the memory keeps enough for probabilities."""
        known = self.memory_
        return known.provides("shared") and not known.ordered and known.total > len(known)

    def _ranked(self, features: Tensor, top: int) -> list[Guesses]:
        chances = self._chances(features) if self.says_how_sure else None
        unknown, verdicts = self._judged(features)
        return ranked(
            self.classes_, self._scores(features), chances, unknown, top, verdicts=verdicts
        )

    def _prototypes(self, found: Guesses, mapped: Tensor) -> list[NearPrototype]:
        """What the best classes gave to an answer for a sample ``(W,)`` under the map."""
        memory, best = self.memory_, found.best[0].score
        rows = self._columns()[[self.classes_.tolist().index(each.label) for each in found.best]]
        gaps = (memory.means_at(torch.from_numpy(rows)) - mapped).norm(dim=1).tolist()
        counts = memory.counts[rows].tolist()
        return [
            NearPrototype(each.label, each.probability, best - each.score, gap, count)
            for each, gap, count in zip(found.best, gaps, counts, strict=True)
        ]

    def _near_samples(
        self, mapped: Tensor, stored: Any, labels: Sequence[Any], top: int
    ) -> list[list[NearSample]]:
        if stored is None:
            return [[] for _ in mapped]
        points = self.memory_.feature_map(self._features(stored)).double()
        if len(points) != len(labels):
            raise ValueError(
                f"{len(points)} stored samples, {len(labels)} labels: expected one each"
            )
        return nearest_samples(mapped, points, labels, top)

    def _uncertainties(self, features: Tensor) -> list[tuple[float | None, ...]]:
        """Total, aleatoric and epistemic, of each sample; None where nothing tells."""
        if not self.says_how_sure:
            return [(None, None, None) for _ in features]
        if self._doubt is None or self._doubt[0] != self.memory_.revision:
            self._doubt = self.memory_.revision, PrototypeUncertainty(self.memory_)
        found = torch.stack(list(self._doubt[1](features)), 1)
        return [tuple(row) for row in found.tolist()]

    def _scores(self, features: Tensor) -> Scores:
        logits = self.head_.fit(self.memory_)(features).double().numpy()
        return cast(Scores, logits[:, self._columns()])

    def _chances(self, features: Tensor) -> Scores:
        self._require_scatter()
        chances = self.head_.calibrate(self.memory_).predict_proba(features).numpy()
        return cast(Scores, chances[:, self._columns()])

    def _require_scatter(self) -> None:
        if not self.says_how_sure:
            raise ValueError(
                "no class has two samples, or no second moments are kept, so that nothing tells "
                "how classes scatter: learn more samples, with a memory of level shared or full"
            )

    def _columns(self) -> NDArray[np.intp]:
        """The column of the head's logits that belongs to each of ``classes_``."""
        return np.searchsorted(self.memory_.classes.numpy(), self.ids_)
