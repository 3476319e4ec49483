"""All scores that a memory allows, and how well they tell known from unknown."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.metrics.detection import Detection, detection
from protocl.open_world.scores.base import Score
from protocl.open_world.scores.evidence import Evidence
from protocl.registry import SCORES


def registered(name: str) -> Score:
    """The score of that name, with its own settings and not fitted.

    Raises:
        ConfigError: there is none.
    """
    score: Score = SCORES.get(name)()
    return score


def known_scores(
    memory: PrototypeMemory, features: Tensor, base: PrototypeMemory | None = None
) -> dict[str, Tensor]:
    """Scores ``(N,)`` by name, high for known, of every registered one that ``memory`` allows.

    Args:
        memory: level ``mean`` allows the distance alone, ``shared`` all; with one class those
            that compare classes are left out, and all but the distance where no class has samples
            that differ.
        features: ``(N, D)``.
        base: of classes that help to estimate the covariances of evidence, which is then given as
            ``evidence_base``, too (:class:`.TwoCovariance`).

    Example:
        >>> memory = PrototypeMemory(2).update(torch.eye(2), torch.tensor([4, 9]))
        >>> known_scores(memory, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))["distance"].tolist()
        [0.0, -1.0]
    """
    made = {name: registered(name) for name in SCORES.names()}
    if base is not None:
        made["evidence_base"] = Evidence(base=base)
    return {
        name: score.fit(memory)(features) for name, score in made.items() if not score.lacks(memory)
    }


def reported_scores(scores: Mapping[str, Tensor], known: Tensor) -> dict[str, Detection]:
    """How well each score tells samples of known classes from others.

    Args:
        scores: ``(N,)`` each, high for known.
        known: ``(N,)`` whether a sample is of a known class.

    Returns:
        Nothing where all samples are known, or none is.
    """
    if bool(known.all()) or not bool(known.any()):
        return {}
    return {name: detection(score[known], score[~known]) for name, score in scores.items()}
