"""A process that carries out runs for a sweep: ``python -m protocl.runner.worker``.

One JSON object a line. Standard input for each run:
``{"kind": "module:class", "config": YAML text, "folder": path}``. Standard output:
``{"progress": {...}}`` any number of times, then ``{"failure": message or null, "exit_code":
number}``. What the run itself prints goes to ``log.txt`` in its
folder. The process ends when its input ends, so it does not outlive the sweep.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import IO, Any

from protocl.runner.folders import LOG_FILE
from protocl.runner.host_warnings import hidden_host_notices
from protocl.runner.kind import Kind
from protocl.runner.progress import Progress


def main() -> None:
    """Carry out the runs named on standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep, which ends our input
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read_orders, args=(sys.stdin, orders), daemon=True).start()
    while True:
        order = orders.get()
        folder = Path(order["folder"])
        with hidden_host_notices():
            _redirect_output(folder / LOG_FILE)
            answer = _carry_out(order, folder, answers)
        if (folder / LOG_FILE).stat().st_size == 0:
            (folder / LOG_FILE).unlink()
        _say(answers, answer)


def _read_orders(source: IO[str], orders: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in source:
        orders.put(json.loads(line))
    os._exit(0)  # a run may be under way in the main thread: nobody waits for it any more


def _carry_out(order: dict[str, str], folder: Path, answers: IO[str]) -> dict[str, Any]:
    def report(progress: Progress) -> None:
        text = None if progress.report is None else str(progress.report)
        _say(answers, {"progress": asdict(replace(progress, report=text))})

    kind: Kind[Any] = resolve_name(order["kind"])()
    failure, code = kind.attempt(kind.from_yaml(order["config"]), folder, report)
    return {"failure": failure, "exit_code": code}


def _say(answers: IO[str], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")


def _redirect_output(log: Path) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


if __name__ == "__main__":
    main()
