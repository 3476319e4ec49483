"""Linear discriminant analysis of an experience: ours beside Avalanche's ``StreamingLDA``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from avalanche.training import StreamingLDA
from torch import Tensor, nn

from protocl.bench import Size, SpeedComparison
from protocl.bench.comparison import require_equal
from protocl.bench.synthetic import features
from protocl.bench.timing import interleaved
from protocl.strategies import SLDA
from protocl.strategies.bench.peers import experience, linear_network, silent

TARGET = 45.0


def measure(size: Size) -> Iterator[SpeedComparison]:
    """From the experience to a classifier that is ready to predict.

    The class means must agree. The covariances cannot: Avalanche's running estimate depends on the
    order of the samples, ours is that of all samples at once.
    """
    x, y = features(size)
    data = experience(x, y)
    # One round is enough where Avalanche takes half a minute.
    mine, theirs = interleaved(lambda: _ours(data, size), lambda: _peer(data, size), repeats=1)
    case = f"LDA fit, {size.samples} x {size.width}, batches of {size.batch}"
    difference = float((mine.result - theirs.result).abs().max())
    yield SpeedComparison(
        case=case,
        peer_name="Avalanche StreamingLDA.train",
        ours=mine.seconds,
        peer=theirs.seconds,
        kind="speedup",
        target=TARGET,
        threads=torch.get_num_threads(),
        difference=require_equal(case, difference, tolerance=1e-4),
    )


def _ours(data: Any, size: Size) -> Tensor:
    strategy = SLDA(
        model=linear_network(size.width, size.classes),
        eval_mb_size=size.batch,
        evaluator=silent(),
    )
    strategy.train(data, eval_streams=[])
    assert strategy.memory is not None
    strategy.head.fit(strategy.memory)
    return strategy.memory.means


def _peer(data: Any, size: Size) -> Tensor:
    strategy = StreamingLDA(
        slda_model=nn.Identity(),
        criterion=nn.CrossEntropyLoss(),
        input_size=size.width,
        num_classes=size.classes,
        train_mb_size=size.batch,
        eval_mb_size=size.batch,
        evaluator=silent(),
    )
    strategy.train(data, eval_streams=[])
    means: Tensor = strategy.muK
    return means
