"""``launcher=local``: runs of a sweep side by side, in processes of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Lock
from typing import Any

from protocl.config.compose import to_yaml
from protocl.config.schema import RunConfig
from protocl.io.provenance import available_cores
from protocl.runner.folders import LOG_FILE, has_log
from protocl.runner.kind import Kind
from protocl.runner.launchers.base import name_of
from protocl.runner.launchers.outcome import Observer, Outcome
from protocl.runner.progress import Progress

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class ClosedError(Exception):
    """The sweep was interrupted, and its processes ended: nobody waits for the run any more."""


class LocalWorker:
    """A process for runs (:mod:`protocl.runner.worker`), started when needed and again if it dies.

    Args:
        kind: of the runs.
        observer: is told of progress.
        jobs: processes that share the cores.
    """

    def __init__(self, kind: Kind[Any], observer: Observer, jobs: int) -> None:
        self._kind = name_of(kind)
        self._observer = observer
        self._environment = {**os.environ, **_thread_limits(jobs)}
        self._process: subprocess.Popen[str] | None = None
        self._closed = False
        self._lock = Lock()

    def run(self, index: int, config: RunConfig, folder: Path) -> Outcome:
        """Carry out one run and wait for its end.

        Raises:
            ClosedError: :meth:`close` was called before it ended.
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
                raise ClosedError
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
            raise ClosedError
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
