"""A process that carries out runs for a sweep: ``python -m protocl.runner.worker``.

One JSON object a line. Standard input: ``{"config": YAML text, "folder": path}`` for each run.
Standard output: ``{"progress": {...}}`` any number of times, then ``{"done": true}`` or
``{"failed": message, "exit_code": number}``. What the run itself prints goes to ``log.txt`` in its
folder. The process ends when its input ends, so it does not outlive the sweep.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from protocl.config.compose import from_yaml
from protocl.errors import ProtoclError
from protocl.runner.experiment import Progress, run_experiment
from protocl.runner.folders import LOG_FILE
from protocl.runner.host_warnings import hidden_host_notices


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
            answer = _carry_out(order["config"], folder, answers)
        if (folder / LOG_FILE).stat().st_size == 0:
            (folder / LOG_FILE).unlink()
        _say(answers, answer)


def _read_orders(source: IO[str], orders: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in source:
        orders.put(json.loads(line))
    os._exit(0)  # a run may be under way in the main thread: nobody waits for it any more


def _carry_out(config: str, folder: Path, answers: IO[str]) -> dict[str, Any]:
    def report(progress: Progress) -> None:
        _say(answers, {"progress": asdict(progress)})

    try:
        run_experiment(from_yaml(config), folder, on_progress=report)
    except ProtoclError as error:
        return {"failed": str(error), "exit_code": error.exit_code}
    except Exception as error:  # the other runs of the sweep go on; the log has the traceback
        traceback.print_exc()
        return {
            "failed": f"{type(error).__name__}: {error} (see {folder / LOG_FILE})",
            "exit_code": 1,
        }
    return {"done": True}


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
