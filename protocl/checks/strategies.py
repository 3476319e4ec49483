"""Laws that every strategy must keep: ours, and those of other packages.

A package that brings a strategy tests it in one line::

    from protocl import checks
    checks.check_strategy(lambda: MyConfig(train_epochs=1))

The strategy learns the stream of :mod:`.toy`. Whoever cannot keep a law runs the others one by one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from protocl.checks import toy
from protocl.checks.toy import ORDER, SIZES
from protocl.config import StrategyConfig
from protocl.io import checkpoint

StrategyFactory = Callable[[], StrategyConfig]


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
        assert outputs.shape[1] >= len(ORDER), f"{outputs.shape[1]} columns for 6 class ids"
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
    for _ in trial.learn(SIZES[:1]):
        pass
    shared = trial.shared()
    with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        path = Path(folder) / "strategy"
        checkpoint.save(path, (trial.strategy, torch.get_rng_state()), shared)
        for original in (True, False):
            restored, random_state = checkpoint.load(path, shared)
            trial.strategy = trial.strategy if original else restored
            torch.set_rng_state(random_state)
            for _ in trial.learn(SIZES[1:], first=1):
                pass
            rest.append(trial.outputs())
    assert torch.equal(*rest), "it goes on differently from a file"


def check_a_class_comes_back(factory: StrategyFactory) -> None:
    """An experience may bring classes again; they and the others can still be answered."""
    trial = _Trial(factory)
    for _ in trial.learn(SIZES[:2]):
        pass
    for _ in trial.learn(SIZES[:1]):
        pass
    seen = list(ORDER[: sum(SIZES[:2])])
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
        self.benchmark = toy.stream()
        self.config = factory()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.strategy: Any = self.config.build(toy.setup())

    def learn(self, sizes: tuple[int, ...] = SIZES, first: int = 0) -> Iterator[list[int]]:
        """Learn the next experiences; yields the class ids seen after each."""
        for t in range(first, first + len(sizes)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Avalanche's own deprecations
                self.strategy.train(self.benchmark.train_stream[t], eval_streams=[])
            yield list(ORDER[: sum(SIZES[: t + 1])])

    def outputs(self) -> Tensor:
        """Logits ``(N, M)`` of all test images."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return toy.answers(self.strategy, self.benchmark)[0]

    def shared(self) -> dict[str, object]:
        """What a checkpoint refers to instead of holding it."""
        return {"benchmark": self.benchmark, "stream": self.benchmark.train_stream}
