"""The commands that run something, as functions."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch

from protocl.cli.sweep import labels_of, run_all
from protocl.python.own_data import with_files
from protocl.python.results import Failure, Results, RunsFailedError
from protocl.python.values import Word, arguments_of
from protocl.registry import Registry
from protocl.report.runs import Embedding, Run, load_run
from protocl.runner.host_warnings import hidden_host_notices
from protocl.runner.kind import Kind
from protocl.runner.sweep import Outcome

KINDS = Registry("protocl.kinds", "kind of run")


def run(*words: Word, **settings: Any) -> Results[Run]:
    """Train and evaluate strategies on a class-incremental benchmark, as ``protocl run`` does.

    The same settings, folders, files and numbers as on the command line; what is under way is shown
    on standard error. ``jobs=N`` works on several runs side by side; ``resume=True`` finds what is
    finished and continues what is not, after Ctrl-C as well.

    Args:
        words: settings as typed on the command line (``"benchmark=digits"``,
            ``"seed=1,2,3"``), or dictionaries of them (``{"strategy.lr": 0.01}``).
        settings: by name. A list is a sweep (``seed=[1, 2, 3]``); where the setting itself is a
            list, a list of numbers or texts is one value, and so is a tuple everywhere. A text is
            taken as it is, commas included. A dictionary holds the settings of a part:
            ``strategy={"name": "slda", "head": {"shrinkage": [0.01, 0.1]}}``. The benchmark may be
            data: a data set of PyTorch or a tuple of two (training and test), arrays, a data frame
            (:func:`.own_data.with_files`).

    Returns:
        One result a run, the first key varying slowest.

    Raises:
        ConfigError: an unknown key or name, or a value that does not fit; nothing was run.
        RunsFailedError: some runs of a sweep failed; it has the results of the others. A run that
            is alone fails with its own error.

    Example::

        results = protocl.run("benchmark=digits", strategy=["slda", "ranpac"], seed=[1, 2, 3])
        results.table()
        results.filter(strategy="slda")[0].metrics.forgetting
    """
    return _answers("experiment", words, settings)


def federate(*words: Word, **settings: Any) -> Results[Run]:
    """Run federations of simulated clients, as ``protocl federate`` does.

    Args:
        words: as for :func:`run`: ``"federation=digits"``.
        settings: as for :func:`run`: ``clients=[10, 100]``, ``method={"head": "lda"}``.

    Returns:
        One result a run; ``results[0].federation`` has its rounds, each with accuracy and bytes.

    Raises:
        ConfigError, RunsFailedError: as :func:`run`.
    """
    return _answers("federation", words, settings)


def reconnaissance(*words: Word, **settings: Any) -> Results[Run]:
    """Evaluate methods of federated reconnaissance, as ``protocl reconnaissance`` does.

    Args:
        words: as for :func:`run`: ``"reconnaissance=digits"``.
        settings: as for :func:`run`: ``method=["prototypes", "fedavg"]``.

    Returns:
        One result a run; ``results[0].reconnaissance["steps"]`` has what each step brought.

    Raises:
        ConfigError, RunsFailedError: as :func:`run`.
    """
    return _answers("reconnaissance", words, settings)


def pretrain(*words: Word, **settings: Any) -> Results[Embedding]:
    """Train embeddings on base classes, as ``protocl pretrain`` does.

    Args:
        words: as for :func:`run`: ``"pretraining=omniglot"``.
        settings: as for :func:`run`: ``epochs=6``.

    Returns:
        One result a run; ``results[0].pretraining.epochs`` has the losses, ``results[0].weights``
        is the file that ``backbone.checkpoint`` takes.

    Raises:
        ConfigError, RunsFailedError: as :func:`run`.
    """
    return cast(Results[Embedding], _carry_out("pretraining", words, settings))


def _answers(kind: str, words: Sequence[Word], settings: Mapping[str, Any]) -> Results[Run]:
    return cast(Results[Run], _carry_out(kind, words, settings))


def _carry_out(name: str, words: Sequence[Word], settings: Mapping[str, Any]) -> Results[Any]:
    with hidden_host_notices(), _undisturbed(), _hint_when_interrupted():
        words = [with_files(word) if isinstance(word, Mapping) else word for word in words]
        settings = with_files(settings)
        kind: Kind[Any] = KINDS.get(name)()
        arguments = arguments_of(kind, words, settings)
        configs = kind.load(arguments)
        labels = labels_of(kind.settle(arguments), configs)
        # A run that is alone raises its own error: there are no others to carry out.
        outcomes = run_all(kind, configs, labels, debug=len(configs) == 1)
    results = _results(outcomes, labels)
    if results.failures:
        raise RunsFailedError(results)
    return results


def _results(outcomes: Sequence[Outcome], labels: Sequence[str]) -> Results[Any]:
    runs: list[Any] = []
    failures = []
    for outcome, label in zip(outcomes, labels, strict=True):
        if outcome.failure is None:
            runs.append(load_run(outcome.folder))
        else:
            failures.append(Failure(label, outcome.failure, outcome.folder))
    return Results(runs, failures)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Leave the caller's random generators as they are, which a run seeds for itself."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _hint_when_interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note("interrupted; the same call with resume=True goes on")
        raise
