"""Many runs: one after the other in this process, or side by side in several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any, Protocol

from protocl.config.compose import to_yaml
from protocl.config.schema import RunConfig
from protocl.io.provenance import available_cores
from protocl.runner.folders import (
    LOG_FILE,
    discard_if_empty,
    has_log,
    is_complete,
    open_run,
    read_result,
)
from protocl.runner.host_warnings import hidden_host_notices
from protocl.runner.kind import Kind
from protocl.runner.progress import Progress

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_CarryOut = Callable[[int, RunConfig, Path], "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """How one run of a sweep ended.

    Attributes:
        config: what was run.
        folder: where it wrote; gone if it failed before it had a result or a log.
        failure: what went wrong, or None.
        exit_code: 0, or that of the failure.
        skipped: whether a finished run of this configuration was found and left as it is.
    """

    config: RunConfig
    folder: Path
    failure: str | None = None
    exit_code: int = 0
    skipped: bool = False


class Observer(Protocol):
    """Whoever is told what happens in a sweep; with several jobs, from several threads."""

    def started(self, index: int, folder: Path) -> None:
        """Run ``index`` begins."""

    def progressed(self, index: int, progress: Progress) -> None:
        """Run ``index`` has come to ``progress``."""

    def ended(self, index: int, outcome: Outcome) -> None:
        """Run ``index`` is over."""


def run_sweep(
    kind: Kind[Any],
    configs: Sequence[RunConfig],
    observer: Observer,
    *,
    jobs: int = 1,
    debug: bool = False,
) -> list[Outcome]:
    """Carry out all runs; one that fails does not stop the others.

    Args:
        kind: of all runs.
        configs: one entry a run.
        observer: is told what happens.
        jobs: processes that work side by side, each with its share of the cores; 1 for none but
            this one.
        debug: with one job, let the first failure out as it was raised.

    Returns:
        The outcomes, in the order of ``configs``.
    """
    folders = [open_run(config) for config in configs]
    outcomes: dict[int, Outcome] = {}
    try:
        _work_off(kind, configs, folders, outcomes, observer, jobs=jobs, debug=debug)
    finally:  # after Ctrl-C some runs have not ended, and some have not begun
        for index, folder in enumerate(folders):
            if index not in outcomes:
                discard_if_empty(folder)
    return [outcomes[index] for index in range(len(configs))]


def _work_off(
    kind: Kind[Any],
    configs: Sequence[RunConfig],
    folders: Sequence[Path],
    outcomes: dict[int, Outcome],
    observer: Observer,
    *,
    jobs: int,
    debug: bool,
) -> None:
    """Carry out all runs that are not complete; each outcome is noted as it comes."""
    todo: SimpleQueue[int] = SimpleQueue()
    for index, (config, folder) in enumerate(zip(configs, folders, strict=True)):
        if is_complete(read_result(folder)):
            outcomes[index] = Outcome(config, folder, skipped=True)
            observer.ended(index, outcomes[index])
        else:
            todo.put(index)

    def work(carry_out: _CarryOut) -> None:
        for index in _drain(todo):
            observer.started(index, folders[index])
            try:
                outcomes[index] = carry_out(index, configs[index], folders[index])
            except _ClosedError:
                return
            except Exception:  # let out by debug
                discard_if_empty(folders[index])
                raise
            if outcomes[index].failure is not None:
                discard_if_empty(folders[index])
            observer.ended(index, outcomes[index])

    jobs = min(jobs, todo.qsize())
    if jobs <= 1:
        work(partial(_run_here, kind, observer, debug))
        return
    workers = [_Worker(kind, observer, jobs) for _ in range(jobs)]
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for lane in [pool.submit(work, worker.run) for worker in workers]:
                lane.result()
        finally:  # also after Ctrl-C, when runs are under way and others wait
            list(_drain(todo))
            for worker in workers:
                worker.close()


def _drain(todo: SimpleQueue[int]) -> Iterator[int]:
    while True:
        try:
            yield todo.get_nowait()
        except Empty:
            return


def _run_here(
    kind: Kind[Any], observer: Observer, debug: bool, index: int, config: RunConfig, folder: Path
) -> Outcome:
    report = partial(observer.progressed, index)
    with hidden_host_notices():
        if debug:
            kind.carry_out(config, folder, report, bars=True)
            return Outcome(config, folder)
        return Outcome(config, folder, *kind.attempt(config, folder, report, bars=True))


class _ClosedError(Exception):
    """The sweep was interrupted, and its processes ended: nobody waits for the run any more."""


class _Worker:
    """A process for runs (:mod:`protocl.runner.worker`), started when needed and again if it dies.

    Args:
        kind: of the runs.
        observer: is told of progress.
        jobs: processes that share the cores.
    """

    def __init__(self, kind: Kind[Any], observer: Observer, jobs: int) -> None:
        self._kind = f"{type(kind).__module__}:{type(kind).__qualname__}"
        self._observer = observer
        self._environment = {**os.environ, **_thread_limits(jobs)}
        self._process: subprocess.Popen[str] | None = None
        self._closed = False
        self._lock = Lock()

    def run(self, index: int, config: RunConfig, folder: Path) -> Outcome:
        """Carry out one run and wait for its end.

        Raises:
            _ClosedError: :meth:`close` was called before it ended.
        """
        process = self._alive()
        assert process.stdin is not None
        assert process.stdout is not None
        order = {"kind": self._kind, "config": to_yaml(config), "folder": str(folder)}
        try:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return self._died(process, config, folder)
        for line in process.stdout:
            answer = json.loads(line)
            if "progress" in answer:
                self._observer.progressed(index, Progress(**answer["progress"]))
            else:
                return Outcome(config, folder, answer["failure"], answer["exit_code"])
        return self._died(process, config, folder)

    def close(self) -> None:
        """End the process, whatever it is doing; a run under way can be resumed."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def _alive(self) -> subprocess.Popen[str]:
        """The process, started if there is none."""
        with self._lock:
            if self._closed:
                raise _ClosedError
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "protocl.runner.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=self._environment,
                )
            return self._process

    def _died(self, process: subprocess.Popen[str], config: RunConfig, folder: Path) -> Outcome:
        code = process.wait()
        if self._closed:
            raise _ClosedError
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        log = f" (see {folder / LOG_FILE})" if has_log(folder) else ""
        failure = f"its process {how}{log}; the same command with resume=true continues it"
        return Outcome(config, folder, failure=failure, exit_code=1)


def _thread_limits(jobs: int) -> dict[str, str]:
    """Environment that gives each of ``jobs`` processes its share of the cores."""
    share = max(1, available_cores() // jobs)
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(share, int(given)) if given.isdecimal() else share
    return dict.fromkeys(_THREAD_VARIABLES, str(threads))
