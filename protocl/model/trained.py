"""A classifier by parameters that a method trained: it answers, and learns nothing more."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from protocl.model.answers import Answer
from protocl.model.encoder import Encoder
from protocl.model.guesses import Guesses, ranked
from protocl.model.labels import Labels


class TrainedClassifier:
    """Classify images, or feature vectors, by an :class:`.Answer`.

    What its method remembers is no sum over samples, so it can neither be taught nor forget.

    Args:
        answer: scores of features, one column a class.
        labels: ``(C,)`` names of its columns.
        encoder: makes features of samples; None where samples are features.

    Attributes:
        classes_: ``(C,)`` labels, sorted.
        labels: the same in the order of the answer's columns.
    """

    def __init__(self, answer: Answer, labels: Labels, encoder: Encoder | None) -> None:
        order = np.argsort(labels, kind="stable")
        self.answer = answer.cpu().eval()
        self.encoder_ = encoder
        self.classes_ = labels[order]
        self.labels = labels
        self._order = order

    @torch.no_grad()
    def scores(self, X: Any) -> NDArray[np.float64]:
        """Scores ``(N, C)`` of samples, columns as ``classes_``."""
        return self._scores(X)[:, self._order]

    def predict(self, X: Any) -> Labels:
        """Labels ``(N,)`` of samples; of equal scores that of the class that came first."""
        return cast(Labels, self.labels[self._scores(X).argmax(1)])

    def guesses(self, X: Any, top: int = 5) -> list[Guesses]:
        """The best classes of each sample; nothing tells how sure they are."""
        return ranked(self.classes_, self.scores(X), None, None, top)

    @torch.no_grad()
    def _scores(self, X: Any) -> NDArray[np.float64]:
        features = torch.as_tensor(X) if self.encoder_ is None else self.encoder_(X)
        found = self.answer(features).double().numpy()
        return cast(NDArray[np.float64], found)
