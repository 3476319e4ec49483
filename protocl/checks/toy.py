"""A stream and a network so small that a strategy shows in a moment what it does.

Six classes, whose ids come in no order, in three experiences of three, one and two: images of eight
times eight pixels, each class a pattern of its own in noise. Laws of strategies are checked on it,
and the examples of strategies are::

    from protocl.checks import toy
    toy.learn(MyConfig(train_epochs=1))
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from protocl.backbones import Backbone, Classifier
from protocl.config import Setup, StrategyConfig
from protocl.data import TensorData, Unlabelled

ORDER, SIZES = (4, 1, 5, 0, 3, 2), (3, 1, 2)
"""Class ids as they come, and how many come with each experience."""

_SHAPE = (1, 8, 8)


def learn(strategy: Any) -> list[float]:
    """Teach a strategy the stream; its accuracy on the classes seen, after each experience.

    Args:
        strategy: one of Avalanche on :func:`model`, or its settings. Its draws are those of one
            seed, so that the answer is the same whenever it is asked for.
    """
    experiences = stream()
    found = []
    with _quiet():
        strategy = strategy.build(setup()) if isinstance(strategy, StrategyConfig) else strategy
        strategy.evaluator.loggers = []  # Avalanche's default prints every epoch
        for t, experience in enumerate(experiences.train_stream):
            strategy.train(experience, eval_streams=[])
            logits, labels = answers(strategy, experiences)
            seen = torch.isin(labels, torch.tensor(ORDER[: sum(SIZES[: t + 1])]))
            right = logits.argmax(1) == labels
            found.append(round(float(right[seen].double().mean()), 3))
    return found


def answers(strategy: Any, experiences: Any) -> tuple[Tensor, Tensor]:
    """Logits ``(N, M)`` that a strategy gives all test images, and their labels ``(N,)``."""
    outputs: list[tuple[Tensor, Tensor]] = []

    class Recorder:
        def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
            outputs.append((strategy.mb_output.detach().clone(), strategy.mb_y.clone()))

    strategy.plugins.append(Recorder())
    strategy.eval(experiences.test_stream)
    strategy.plugins.pop()
    logits, labels = map(torch.cat, zip(*outputs, strict=True))
    return logits, labels


def stream() -> Any:
    """The benchmark: ``train_stream`` of three experiences, ``test_stream`` likewise."""
    from avalanche.benchmarks import nc_benchmark

    return nc_benchmark(
        patterns(24, seed=0), patterns(6, seed=1), len(SIZES), task_labels=False,
        fixed_class_order=list(ORDER), per_exp_classes=dict(enumerate(SIZES[:-1])),
    )  # fmt: skip


def unlabelled() -> Unlabelled:
    """Images of :func:`stream` without labels: of class 2, which comes last, with the first."""
    images = patterns(12, seed=2)
    rows = images.y == ORDER[-1]
    return Unlabelled(images.x[rows], torch.zeros(int(rows.sum()), dtype=torch.int64), (1, 0, 0))


def model() -> Classifier:
    """An untrained network of 16 features, with a linear layer for the six classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU()
        classifier = nn.Linear(16, len(ORDER))
    # Features are not negative: some heads take powers of them.
    return Classifier(Backbone(nn.Sequential(*layers), 16, architecture="test"), classifier)


def setup() -> Setup:
    """What settings of a strategy build it from."""
    from avalanche.training.plugins import EvaluationPlugin

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "No loggers specified"
        evaluator = EvaluationPlugin()
    return Setup(
        model=model(),
        feature_dim=16,
        n_classes=len(ORDER),
        device=torch.device("cpu"),
        seed=0,
        plugins=[],
        evaluator=evaluator,
    )


def patterns(samples: int, seed: int) -> TensorData:
    """``samples`` images of each class: its own pattern, in noise."""
    own = torch.rand(len(ORDER), *_SHAPE, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples * len(ORDER)) % len(ORDER)
    noise = torch.rand(len(labels), *_SHAPE, generator=generator)
    return TensorData(0.7 * own[labels] + 0.3 * noise, labels)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Avalanche's warnings of what it deprecates; draws are those of one seed."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield
