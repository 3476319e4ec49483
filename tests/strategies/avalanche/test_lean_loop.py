"""The lean loop fires the same events, with the same values, as Avalanche's own."""

from __future__ import annotations

from functools import partialmethod
from typing import Any

from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import (
    accuracy_metrics,
    class_accuracy_metrics,
    confusion_matrix_metrics,
    forgetting_metrics,
    loss_metrics,
)
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin

from protocl.strategies import InMemory
from tests.strategies.small import build_strategy, train_on

EVENTS = [name for name in dir(SupervisedPlugin) if name.startswith(("before_", "after_"))]


class Tracer(SupervisedPlugin):
    """Notes every event and what a plugin can see then."""

    def __init__(self) -> None:
        super().__init__()
        self.trace: list[Any] = []

    def note(self, strategy: Any, event: str, **kwargs: Any) -> None:
        output = strategy.mb_output
        seen = None if output is None else output.sum().item()
        steps, loss = strategy.clock.total_iterations, strategy.loss.sum().item()
        self.trace.append((event, kwargs, steps, loss, seen))


for _event in EVENTS:
    setattr(Tracer, _event, partialmethod(Tracer.note, event=_event))


class Book(BaseLogger):
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Any] = []

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        self.entries.append((name, str(value), x_plot))


class IterationBook(Book):
    """One that also listens to a single event of the loop."""

    def after_training_iteration(self, strategy: Any, metric_values: Any, **kwargs: Any) -> None:
        self.entries.append((strategy.clock.train_iterations, len(metric_values)))


def run(benchmark: Any, *plugins: Any, name: str = "replay") -> tuple[Any, ...]:
    """Everything that metrics, loggers and plugins were told."""
    book, iterations, tracer = Book(), IterationBook(), Tracer()
    evaluator = EvaluationPlugin(
        accuracy_metrics(
            minibatch=True, epoch=True, epoch_running=True, experience=True, stream=True
        ),
        loss_metrics(minibatch=True, epoch=True, experience=True),
        forgetting_metrics(experience=True, stream=True),
        class_accuracy_metrics(epoch=True, stream=True),
        confusion_matrix_metrics(num_classes=6, stream=True, save_image=False),
        loggers=[book, iterations],
        collect_all=True,
    )
    strategy = build_strategy(name, [tracer, *plugins], evaluator=evaluator, eval_every=1)
    for experience in benchmark.train_stream:
        train_on(strategy, [experience], some_argument=3)
        strategy.eval(benchmark.test_stream, another=4)
    numbers = {
        key: values for key, values in evaluator.get_all_metrics().items() if "Confusion" not in key
    }
    return numbers, book.entries, iterations.entries, tracer.trace


def test_metrics_loggers_and_plugins_are_told_the_same(benchmark: Any) -> None:
    theirs = run(benchmark)
    ours = run(benchmark, InMemory())
    assert len(theirs[3]) > 400
    assert {entry[0] for entry in theirs[3]} == set(EVENTS)
    assert ours == theirs


def test_a_strategy_that_overrides_parts_of_the_loop_keeps_them(benchmark: Any) -> None:
    # DER replaces _before_forward and the criterion.
    assert run(benchmark, InMemory(), name="der") == run(benchmark, name="der")


def test_a_plugin_of_no_base_class_is_called(benchmark: Any) -> None:
    counts = []
    for extra in ([], [InMemory()]):
        calls = []

        class Plain:
            def after_update(self, strategy: Any, calls: list[int] = calls, **kwargs: Any) -> None:
                calls.append(strategy.clock.train_iterations)

        train_on(build_strategy("naive", [Plain(), *extra]), benchmark.train_stream)
        counts.append(calls)
    assert counts[0] == counts[1] != []


def test_training_can_be_stopped_within_an_epoch(benchmark: Any) -> None:
    class Stop(SupervisedPlugin):
        def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            if strategy.clock.train_epoch_iterations == 2:
                strategy.stop_training()

    counts = []
    for extra in ([], [InMemory()]):
        strategy = build_strategy("naive", [Stop(), *extra])
        train_on(strategy, benchmark.train_stream)
        counts.append(strategy.clock.train_iterations)
    assert counts[0] == counts[1] == 9


def test_the_strategys_own_loop_is_back_afterwards(benchmark: Any) -> None:
    strategy = build_strategy("naive", [InMemory()])
    train_on(strategy, benchmark.train_stream)
    strategy.eval(benchmark.test_stream)
    assert not {"training_epoch", "eval_epoch"} & set(vars(strategy))


def test_a_strategy_with_a_loop_of_its_own_keeps_it(benchmark: Any) -> None:
    strategy = build_strategy("naive", [InMemory()])
    epochs = []

    class Own(type(strategy)):  # type: ignore[misc]
        def training_epoch(self, **kwargs: Any) -> None:
            epochs.append(self.clock.train_exp_epochs)

    strategy.__class__ = Own
    train_on(strategy, benchmark.train_stream[:1])
    assert epochs == [0, 1]
