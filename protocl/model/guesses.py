"""The best classes of a sample, for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocl.model.labels import Labels
from protocl.open_world.calibration import Verdict


class Guess(NamedTuple):
    """A class that a sample may belong to.

    Attributes:
        label: of the class.
        score: what the head gives it; the larger, the nearer.
        probability: calibrated; None where nothing tells how sure the head is.
    """

    label: Any
    score: float
    probability: float | None


class Guesses(NamedTuple):
    """What a model makes of a sample.

    Attributes:
        best: classes, the best first.
        unknown: probability that it belongs to none of those known, or, by a score, the share of
            known samples that score higher; None where nothing tells.
        verdict: by a score; None where the model uses none.
    """

    best: list[Guess]
    unknown: float | None
    verdict: Verdict | None = None


def ranked(
    classes: Labels,
    scores: NDArray[np.float64],
    chances: NDArray[np.float64] | None,
    unknown: NDArray[np.float64] | None,
    top: int,
    *,
    verdicts: Sequence[Verdict] | None = None,
) -> list[Guesses]:
    """The guesses of ``N`` samples.

    Args:
        classes: ``(C,)`` labels.
        scores: ``(N, C)``.
        chances: ``(N, C)`` probabilities, if there are any.
        unknown: ``(N,)``, if it is known.
        top: classes a sample, at least 1.
        verdicts: of each, where a score gives them.

    Raises:
        ValueError: ``top`` is less than 1.
    """
    if top < 1:
        raise ValueError(f"top={top}: expected at least 1")
    columns = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    labels = classes.tolist()
    return [
        Guesses(
            [
                Guess(labels[c], float(scores[n, c]), None if chances is None else chances[n, c])
                for c in columns[n]
            ],
            None if unknown is None else float(unknown[n]),
            None if verdicts is None else verdicts[n],
        )
        for n in range(len(scores))
    ]
