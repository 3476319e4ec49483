"""Many runs: one after the other in this process, or side by side where a launcher has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from protocl.config.schema import RunConfig
from protocl.io.provenance import available_cores
from protocl.runner.folders import discard_if_empty, is_complete, open_run, read_result
from protocl.runner.host_warnings import hidden_host_notices
from protocl.runner.kind import Kind
from protocl.runner.launchers.base import Worker
from protocl.runner.launchers.local import ClosedError, LocalWorker
from protocl.runner.launchers.outcome import Observer, Outcome
from protocl.runner.progress import Progress

_CarryOut = Callable[[int, RunConfig, Path], "Outcome"]


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
            except ClosedError:
                return
            except Exception:  # let out by debug
                discard_if_empty(folders[index])
                raise
            if outcomes[index].failure is not None:
                discard_if_empty(folders[index])
            observer.ended(index, outcomes[index])

    jobs = min(jobs, todo.qsize())
    if jobs == 0:
        return
    if jobs == 1 and configs[0].launcher == "local":
        work(partial(_run_here, kind, observer, debug))
        return
    workers = [_worker(kind, configs[0], observer, jobs) for _ in range(jobs)]
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for lane in [pool.submit(work, worker.run) for worker in workers]:
                lane.result()
        finally:  # also after Ctrl-C, when runs are under way and others wait
            list(_drain(todo))
            for worker in workers:
                worker.close()


def _worker(kind: Kind[Any], config: RunConfig, observer: Observer, jobs: int) -> Worker:
    """What carries out runs side by side with ``jobs - 1`` others, where the launcher says."""

    def tell(index: int, what: str) -> None:
        observer.progressed(index, Progress("report", report=what))

    if config.launcher == "ray":
        from protocl.runner.launchers.ray import RayWorker

        return RayWorker(kind, tell, max(1, available_cores() // jobs))
    if config.launcher == "slurm":
        from protocl.runner.launchers.slurm import SlurmWorker

        return SlurmWorker(kind, tell, config)
    return LocalWorker(kind, observer, jobs)


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
