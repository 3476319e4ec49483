"""Laws that every strategy must keep: ours, and those of other packages.

A package that brings a strategy tests it in one line::

    from protocl import checks
    checks.check_strategy(lambda: MyConfig(train_epochs=1))

The strategy learns three experiences of three, one and two classes, whose ids come in no order,
from small images of patterns in noise. Whoever cannot keep a law runs the others one by one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from protocl.backbones import Backbone, Classifier
from protocl.config import Setup, StrategyConfig
from protocl.data import TensorData
from protocl.io import checkpoint

StrategyFactory = Callable[[], StrategyConfig]

_ORDER, _SIZES = (4, 1, 5, 0, 3, 2), (3, 1, 2)
_SHAPE = (1, 8, 8)


def check_strategy(factory: StrategyFactory) -> None:
    """All laws of a strategy.

    Args:
        factory: makes its settings, small ones; called many times.
    """
    for check in STRATEGY_CHECKS:
        check(factory)


def check_answers(factory: StrategyFactory) -> None:
    """Whatever the order and number of the classes, those seen get finite logits."""
    trial = _Trial(factory)
    for seen in trial.learn():
        outputs = trial.outputs()
        assert outputs.shape[1] >= len(_ORDER), f"{outputs.shape[1]} columns for 6 class ids"
        assert torch.isfinite(outputs[:, seen]).all(), f"logits of classes {seen} are not finite"


def check_unseen_never_win(factory: StrategyFactory) -> None:
    """Where prototypes answer, only classes that were seen can win."""
    trial = _Trial(factory)
    if trial.config.old_prototypes == "none":
        return
    for seen in trial.learn():
        unseen = set(trial.outputs().argmax(1).tolist()) - set(seen)
        assert not unseen, f"classes {sorted(unseen)} won unseen"


def check_evaluation_changes_nothing(factory: StrategyFactory) -> None:
    """Evaluating twice gives the same answers, and leaves no hook on the model."""
    trial = _Trial(factory)
    for _ in trial.learn():
        assert torch.equal(trial.outputs(), trial.outputs()), "a second evaluation differs"
        for name, module in trial.strategy.model.named_modules():
            hooks = len(module._forward_pre_hooks) + len(module._forward_hooks)
            assert not hooks, f"layer '{name}' was left with {hooks} hooks"


def check_continues(factory: StrategyFactory) -> None:
    """Saved after an experience and read again, it goes on as if nothing had happened."""
    trial, rest = _Trial(factory), []
    for _ in trial.learn(_SIZES[:1]):
        pass
    shared = trial.shared()
    with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        path = Path(folder) / "strategy"
        checkpoint.save(path, (trial.strategy, torch.get_rng_state()), shared)
        for original in (True, False):
            restored, random_state = checkpoint.load(path, shared)
            trial.strategy = trial.strategy if original else restored
            torch.set_rng_state(random_state)
            for _ in trial.learn(_SIZES[1:], first=1):
                pass
            rest.append(trial.outputs())
    assert torch.equal(*rest), "it goes on differently from a file"


def check_a_class_comes_back(factory: StrategyFactory) -> None:
    """An experience may bring classes again; they and the others can still be answered."""
    trial = _Trial(factory)
    for _ in trial.learn(_SIZES[:2]):
        pass
    for _ in trial.learn(_SIZES[:1]):
        pass
    seen = list(_ORDER[: sum(_SIZES[:2])])
    assert torch.isfinite(trial.outputs()[:, seen]).all(), "logits are not finite"


STRATEGY_CHECKS = (
    check_answers,
    check_unseen_never_win,
    check_evaluation_changes_nothing,
    check_continues,
    check_a_class_comes_back,
)


class _Trial:
    """A strategy of ``factory`` at the start of the stream."""

    def __init__(self, factory: StrategyFactory) -> None:
        from avalanche.benchmarks import nc_benchmark

        train, test = _patterns(24, seed=0), _patterns(6, seed=1)
        self.benchmark = nc_benchmark(
            train, test, len(_SIZES), task_labels=False, fixed_class_order=list(_ORDER),
            per_exp_classes=dict(enumerate(_SIZES[:-1])),
        )  # fmt: skip
        self.config = factory()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.strategy: Any = self.config.build(_setup())

    def learn(self, sizes: tuple[int, ...] = _SIZES, first: int = 0) -> Iterator[list[int]]:
        """Learn the next experiences; yields the class ids seen after each."""
        for t in range(first, first + len(sizes)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Avalanche's own deprecations
                self.strategy.train(self.benchmark.train_stream[t], eval_streams=[])
            yield list(_ORDER[: sum(_SIZES[: t + 1])])

    def outputs(self) -> Tensor:
        """Logits ``(N, M)`` of all test images."""
        seen: list[Tensor] = []

        class Recorder:
            def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
                seen.append(strategy.mb_output.detach().clone())

        self.strategy.plugins.append(Recorder())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.strategy.eval(self.benchmark.test_stream)
        self.strategy.plugins.pop()
        return torch.cat(seen)

    def shared(self) -> dict[str, object]:
        """What a checkpoint refers to instead of holding it."""
        return {"benchmark": self.benchmark, "stream": self.benchmark.train_stream}


def _patterns(samples: int, seed: int) -> TensorData:
    """``samples`` images of each class: its own pattern, in noise."""
    patterns = torch.rand(len(_ORDER), *_SHAPE, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples * len(_ORDER)) % len(_ORDER)
    noise = torch.rand(len(labels), *_SHAPE, generator=generator)
    return TensorData(0.7 * patterns[labels] + 0.3 * noise, labels)


def _setup() -> Setup:
    from avalanche.training.plugins import EvaluationPlugin

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU()
        classifier = nn.Linear(16, len(_ORDER))
    # Features are not negative: some heads take powers of them.
    backbone = Backbone(nn.Sequential(*layers), 16, architecture="test")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "No loggers specified"
        evaluator = EvaluationPlugin()
    return Setup(
        model=Classifier(backbone, classifier),
        feature_dim=backbone.feature_dim,
        n_classes=len(_ORDER),
        device=torch.device("cpu"),
        seed=0,
        plugins=[],
        evaluator=evaluator,
    )
