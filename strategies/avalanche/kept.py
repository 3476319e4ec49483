"""Avalanche's own classifiers in the form that a model on disk keeps."""

from __future__ import annotations

from typing import Any

import torch

from protocl.model.answers import Answer, LinearAnswer
from protocl.registry import ANSWERS


def nearest_means(classifier: Any) -> Answer:
    """Of an ``NCMClassifier``."""
    means = classifier.class_means
    answer: Answer = ANSWERS.get("prototypes")("distance", unit_length=classifier.normalize)
    return answer.hold(classes=torch.arange(len(means)), prototypes=means)


def streaming_lda(strategy: Any) -> LinearAnswer:
    """Of a ``StreamingLDA``: the weights that its ``predict`` computes for each batch anew."""
    means = strategy.muK
    strategy.predict(means[:1])  # brings its inverse up to date
    weight = means @ strategy.Lambda.T
    bias = -0.5 * (means * weight).sum(1)
    return LinearAnswer().hold(classes=torch.arange(len(means)), weight=weight, bias=bias)
