"""Avalanche's training and evaluation loop, less the calls that nobody answers.

In each iteration ``SupervisedTemplate`` offers eight events to every plugin, its evaluation plugin
copies the experience for each of them, and the task labels of the whole experience are looked up
for each forward pass. Who answers which event does not change within an epoch, so it is asked
once. Order, arguments and results are Avalanche's own; a method that a strategy overrides is
called as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metric_definitions import GenericPluginMetric, PluginMetric
from avalanche.models import avalanche_forward
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate

Calls = list[Callable[[], Any]]


def use_lean_training(strategy: Any) -> None:
    """Let ``strategy`` run its next epoch by the loop below, unless it has one of its own."""
    if type(strategy).training_epoch is SupervisedTemplate.training_epoch:
        strategy.training_epoch = partial(_training_epoch, strategy)


def use_lean_evaluation(strategy: Any) -> None:
    """Let ``strategy`` evaluate its next experience by the loop below."""
    if type(strategy).eval_epoch is SupervisedTemplate.eval_epoch:
        strategy.eval_epoch = partial(_eval_epoch, strategy)


def use_own_loop(strategy: Any) -> None:
    """Give ``strategy`` its class's loops back."""
    for name in ("training_epoch", "eval_epoch"):
        vars(strategy).pop(name, None)


def _training_epoch(strategy: Any, **kwargs: Any) -> None:
    """Same steps as ``avalanche.training.templates.update_type.SGDUpdate.training_epoch``."""
    calls = partial(_calls, strategy, kwargs)
    before_iteration = calls("before_training_iteration")
    before_forward, after_forward = calls("before_forward"), calls("after_forward")
    before_backward, after_backward = calls("before_backward"), calls("after_backward")
    before_update, after_update = calls("before_update"), calls("after_update")
    after_iteration = calls("after_training_iteration")
    forward = _forward(strategy)
    for batch in strategy.dataloader:
        strategy.mbatch = batch
        if strategy._stop_training:
            break
        strategy._unpack_minibatch()
        _run(before_iteration)
        strategy.optimizer.zero_grad()
        strategy.loss = strategy._make_empty_loss()
        _run(before_forward)
        strategy.mb_output = forward()
        _run(after_forward)
        strategy.loss += strategy.criterion()
        _run(before_backward)
        strategy.backward()
        _run(after_backward)
        _run(before_update)
        strategy.optimizer_step()
        _run(after_update)
        _run(after_iteration)


def _eval_epoch(strategy: Any, **kwargs: Any) -> None:
    """Same steps as ``BaseSGDTemplate.eval_epoch``."""
    calls = partial(_calls, strategy, kwargs)
    before_iteration, after_iteration = (
        calls("before_eval_iteration"),
        calls("after_eval_iteration"),
    )
    before_forward, after_forward = calls("before_eval_forward"), calls("after_eval_forward")
    forward = _forward(strategy)
    for batch in strategy.dataloader:
        strategy.mbatch = batch
        strategy._unpack_minibatch()
        _run(before_iteration)
        _run(before_forward)
        strategy.mb_output = forward()
        _run(after_forward)
        strategy.loss = strategy.criterion()
        _run(after_iteration)


def _run(calls: Calls) -> None:
    for call in calls:
        call()


def _forward(strategy: Any) -> Callable[[], Any]:
    """``SupervisedProblem.forward`` with the question for task labels asked once."""
    own = type(strategy).forward is SupervisedTemplate.forward
    if not own or "forward" in vars(strategy):
        overridden: Callable[[], Any] = strategy.forward
        return overridden
    if hasattr(strategy.experience, "task_labels"):
        return lambda: avalanche_forward(strategy.model, strategy.mb_x, strategy.mb_task_id)
    return lambda: strategy.model(strategy.mb_x)


def _calls(strategy: Any, kwargs: dict[str, Any], event: str) -> Calls:
    """What has to be called when ``event`` happens."""
    trigger = f"_{event}"
    if getattr(type(strategy), trigger) is not getattr(SupervisedTemplate, trigger):
        return [partial(getattr(strategy, trigger), **kwargs)]
    calls: Calls = []
    for plugin in strategy.plugins:
        if type(plugin) is EvaluationPlugin:
            calls += _evaluation(plugin, strategy, event)
        elif _implements(plugin, event, SupervisedPlugin):
            calls.append(partial(getattr(plugin, event), strategy, **kwargs))
    return calls


def _evaluation(plugin: EvaluationPlugin, strategy: Any, event: str) -> Calls:
    """``EvaluationPlugin._update_metrics_and_loggers`` for those that act at ``event``.

    The copy of the experience that metrics see is made once, not for every event.
    """
    metrics = [getattr(m, event) for m in plugin.metrics if _acts(m, event)]
    loggers = [getattr(logger, event) for logger in plugin.loggers if _acts(logger, event)]
    if not metrics and not loggers:
        return []
    seen_by_metrics = strategy.experience.logging()

    def call() -> None:
        if not plugin._active:
            return
        experience, strategy.experience = strategy.experience, seen_by_metrics
        try:
            for metric in metrics:
                result = metric(strategy)
                for value in result if isinstance(result, Sequence) else [result]:
                    if value is not None:
                        plugin.publish_metric_value(value)
            if plugin._metric_values:
                for logger in plugin.loggers:
                    logger.log_metrics(plugin._metric_values)
            for logger in loggers:
                logger(strategy, plugin._metric_values)
            plugin._metric_values = []
        finally:
            strategy.experience = experience

    return [call]


def _acts(listener: Any, event: str) -> bool:
    """Whether a metric or logger does anything at ``event``."""
    if not _implements(listener, event, PluginMetric):
        return False
    if not _implements(listener, event, SupervisedPlugin):
        return False
    if _implements(listener, event, GenericPluginMetric):
        return True
    if listener._mode != ("eval" if "eval" in event else "train"):
        return False
    return event.startswith("after_") or listener._reset_at == "iteration"


def _implements(listener: Any, event: str, base: type) -> bool:
    """Whether ``listener`` has an ``event`` that is not the one of ``base``."""
    found = getattr(type(listener), event, None) or vars(listener).get(event)
    return found is not None and found is not getattr(base, event, None)
