"""Scores that are high for samples of known classes: pure functions of a memory."""

from protocl.open_world.scores.base import Score
from protocl.open_world.scores.every import known_scores, reported_scores
from protocl.open_world.scores.neighbours import NearestSamples

__all__ = ["NearestSamples", "Score", "known_scores", "reported_scores"]
