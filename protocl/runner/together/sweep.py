"""Runs that several processes carry out together, one run after the other."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from protocl.config.schema import RunConfig
from protocl.distributed.collectives import is_loss, of_first, require_same
from protocl.distributed.launched import CONTINUE
from protocl.errors import ConfigError, PeerError, ProtoclError
from protocl.runner.context import CHECKPOINTS
from protocl.runner.folders import (
    LOG_FILE,
    decisive,
    discard_if_empty,
    exclusive,
    is_complete,
    open_run,
    read_result,
)
from protocl.runner.host_warnings import hidden_host_notices
from protocl.runner.kind import Kind
from protocl.runner.progress import ProgressCallback
from protocl.runner.sweep import Observer, Outcome
from protocl.runner.together.context import SharedContext


def run_together(
    kind: Kind[Any], configs: Sequence[RunConfig], observer: Observer, *, debug: bool = False
) -> list[Outcome]:
    """Carry out all runs, each by all processes of the group; the first that fails is the last.

    A process that failed cannot tell the others, who may wait for it: they hear of it when it ends.

    Args:
        kind, configs, observer: as for :func:`protocl.runner.sweep.run_sweep`; other processes than
            the first have observers of their own.
        debug: let the failure out as it was raised.

    Returns:
        The outcomes, in the order of ``configs``; none of those after a failure.

    Raises:
        ConfigError: several jobs are asked for, or the processes were given different settings.
    """
    if configs[0].jobs > 1:
        raise ConfigError(
            f"jobs={configs[0].jobs}: under torchrun all processes work on one run, and runs of a "
            "sweep come one after the other; leave it out"
        )
    _require_same_settings(configs)
    outcomes: list[Outcome] = []
    for index, config in enumerate(configs):
        folder, finished = of_first(partial(_opened, config))
        if not finished:
            observer.started(index, folder)
        report = partial(observer.progressed, index)
        with hidden_host_notices():
            outcome = _attempt(kind, config, folder, report, finished=finished, debug=debug)
        observer.ended(index, outcome)
        outcomes.append(outcome)
        if outcome.failure is not None:
            return outcomes
    return outcomes


def _require_same_settings(configs: Sequence[RunConfig]) -> None:
    try:
        require_same({"the number of runs": len(configs)})
        for config in configs:
            require_same(decisive(config))
    except PeerError as error:
        raise ConfigError(str(error)) from error


def _opened(config: RunConfig) -> tuple[Path, bool]:
    folder = open_run(config)
    return folder, is_complete(read_result(folder))


def _attempt(
    kind: Kind[Any],
    config: RunConfig,
    folder: Path,
    report: ProgressCallback,
    *,
    finished: bool,
    debug: bool,
) -> Outcome:
    if finished:
        return Outcome(config, folder, skipped=True)
    try:
        _carry_out(kind, config, folder, report)
    except Exception as error:
        if dist.get_rank() == 0:
            _keep(error, folder)
        if debug:
            raise
        return Outcome(config, folder, *_failure(error, folder))
    return Outcome(config, folder)


def _carry_out(kind: Kind[Any], config: RunConfig, folder: Path, report: ProgressCallback) -> None:
    with ExitStack() as held:
        of_first(lambda: held.enter_context(exclusive(folder)))
        run: SharedContext[Any] = SharedContext(kind.name, config, folder, report, bars=True)
        run.write(kind.execute_together(run), complete=True)
        if run.leads and not kind.keeps_checkpoints:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        of_first(lambda: None)  # all have ended well, and the first has written


def _failure(error: Exception, folder: Path) -> tuple[str, int]:
    """What went wrong, and the exit code."""
    if isinstance(error, PeerError) or (not isinstance(error, ProtoclError) and is_loss(error)):
        return f"{error}; {CONTINUE}", 1
    if isinstance(error, ProtoclError):
        return str(error), error.exit_code
    return f"{type(error).__name__}: {error} (see {folder / LOG_FILE})", 1


def _keep(error: Exception, folder: Path) -> None:
    """Write the traceback of what nobody foresaw to the run's log."""
    if isinstance(error, ProtoclError):
        discard_if_empty(folder)
        return
    with (folder / LOG_FILE).open("a", encoding="utf-8") as log:
        traceback.print_exception(error, file=log)
