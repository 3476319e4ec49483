"""Class means of an experience: ours beside Avalanche's ``CurrentDataNCMUpdate``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from avalanche.models import NCMClassifier
from avalanche.training.plugins import CurrentDataNCMUpdate
from torch import Tensor

from protocl.bench import Size, SpeedComparison
from protocl.bench.comparison import require_equal
from protocl.bench.synthetic import features
from protocl.bench.timing import interleaved
from protocl.strategies import NearestMean
from protocl.strategies.bench.peers import (
    avalanche_experience,
    experience,
    frozen_features,
    linear_network,
    silent,
)

TARGET = 10.0


def measure(size: Size) -> Iterator[SpeedComparison]:
    """Read the experience and take the means, both sides from one and the same experience.

    On our side this is all of ``strategy.train``, on Avalanche's its plugin's part of it alone.
    The target is for Avalanche's own data set, as its users have it. With ours beneath it,
    Avalanche's loader is quicker too; that is reported beside it.
    """
    x, y = features(size)
    yield _compare(avalanche_experience(x, y), "Avalanche's own data set", TARGET, size)
    yield _compare(experience(x, y), "our data set", None, size)


def _compare(data: Any, source: str, target: float | None, size: Size) -> SpeedComparison:
    def ours() -> Tensor:
        strategy = NearestMean(
            model=linear_network(size.width, size.classes),
            normalize_input=True,
            normalize_mean=True,
            eval_mb_size=size.batch,
            evaluator=silent(),
        )
        strategy.train(data, eval_streams=[])
        assert strategy.memory is not None
        return torch.nn.functional.normalize(strategy.memory.means, dim=1)

    def peer() -> Tensor:
        classifier = NCMClassifier(normalize=True)
        CurrentDataNCMUpdate().after_training_exp(frozen_features(classifier, data, size.batch))
        return classifier.class_means

    mine, theirs = interleaved(ours, peer, repeats=size.repeats)
    case = f"nearest-mean update, {size.samples} x {size.width}, batches of {size.batch}, {source}"
    difference = float((mine.result - theirs.result).abs().max())
    return SpeedComparison(
        case=case,
        peer_name="Avalanche CurrentDataNCMUpdate",
        ours=mine.seconds,
        peer=theirs.seconds,
        kind="speedup",
        target=target,
        threads=torch.get_num_threads(),
        difference=require_equal(case, difference, tolerance=1e-4),
    )
