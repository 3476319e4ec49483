"""What both sides are given: one experience, and strategies as a user of Avalanche builds them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.models import TrainEvalModel
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn

from protocl.backbones import Classifier
from protocl.data import ArrayData, BenchmarkConfig, build_benchmark

LEARNING_RATE = 0.01


def experience(x: Tensor, y: Tensor) -> Any:
    """All samples as the only experience of an Avalanche benchmark."""
    names = [str(label) for label in range(int(y.max()) + 1)]
    data = ArrayData(x, y, x, y, names, "synthetic")
    config = BenchmarkConfig(n_experiences=1, shuffle_classes=False)
    return build_benchmark(config, data, seed=0).train_stream[0]


def avalanche_experience(x: Tensor, y: Tensor) -> Any:
    """The same out of Avalanche's own generator, whose data set its users have."""
    benchmark = tensors_benchmark([(x, y)], [(x[:1], y[:1])], task_labels=[0])
    return benchmark.train_stream[0]


def silent() -> EvaluationPlugin:
    """An evaluator without metrics and loggers, so that only the strategy is measured."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No loggers specified")
        return EvaluationPlugin()


def frozen_features(classifier: nn.Module, data: Any, batch: int) -> Any:
    """A strategy whose model is ``classifier`` on features, as Avalanche's plugins expect it.

    Its training has ended on the experience ``data``: what is left is ``after_training_exp``.
    """
    model = TrainEvalModel(
        feature_extractor=nn.Identity(),
        train_classifier=nn.Linear(1, 1),  # unused, but an optimizer needs a parameter
        eval_classifier=classifier,
    )
    strategy = naive(model, batch)
    strategy.experience = data
    return strategy


def naive(model: nn.Module, batch: int, *plugins: Any) -> Any:
    """Avalanche's plain strategy: one epoch of stochastic gradient descent an experience."""
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LEARNING_RATE),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch,
        train_epochs=1,
        eval_mb_size=batch,
        device=next(model.parameters()).device,
        plugins=list(plugins),
        evaluator=silent(),
    )


def linear_network(width: int, classes: int) -> nn.Module:
    """One linear layer on features ``(N, width)``."""
    return Classifier(nn.Identity(), nn.Linear(width, classes))


def small_network(classes: int) -> nn.Module:
    """A convolutional network for 3x32x32 images that one core trains at some 60 us a sample."""
    backbone = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return Classifier(backbone, nn.Linear(32, classes))


def trained(build: Callable[[], nn.Module], data: Any, batch: int, *plugins: Any) -> nn.Module:
    """A model after one epoch on an experience; equal arguments give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
        naive(model, batch, *plugins).train(data, eval_streams=[])
    return model


def largest_weight_difference(one: nn.Module, other: nn.Module) -> float:
    """Largest absolute difference between the weights of two models of one architecture."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)
