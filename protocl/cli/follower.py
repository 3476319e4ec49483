"""What other processes than the first do of a command under ``torchrun``: the work, quietly."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from protocl.distributed.launched import joined, rank
from protocl.errors import PeerError, ProtoclError
from protocl.runner.kind import Kind
from protocl.runner.progress import Progress
from protocl.runner.sweep import Outcome
from protocl.runner.together.sweep import run_together

_OF_THIS_PROCESS = PeerError.exit_code
"""Other failures are those of the command, which the first process reports."""

_HEAD_START = 5.0
"""Seconds, which the launcher cuts short."""


def follow(kind: Kind[Any], args: argparse.Namespace) -> int:
    """Carry out a share of all runs that ``args.settings`` ask for; the exit code."""
    try:
        configs = kind.load(args.settings)
        if args.show:
            return 0
        kind.ready(configs)
        with joined():
            outcomes = run_together(kind, configs, _Follower(), debug=args.debug)
    except PeerError:
        raise
    except ProtoclError as error:
        return after_the_first(error.exit_code)
    return after_the_first(outcomes[-1].exit_code)


def after_the_first(code: int) -> int:
    """The exit code, once the first process has had the time to report a failure of all.

    The launcher ends the others as soon as one has failed.
    """
    if code not in (0, _OF_THIS_PROCESS):
        time.sleep(_HEAD_START)
    return code


class _Follower:
    """Says nothing but what went wrong in this process."""

    def started(self, index: int, folder: Path) -> None:
        """Nothing."""

    def progressed(self, index: int, progress: Progress) -> None:
        """Nothing."""

    def ended(self, index: int, outcome: Outcome) -> None:
        """Say why the run failed here."""
        if outcome.exit_code == _OF_THIS_PROCESS:
            sys.stderr.write(f"protocl: rank {rank()}: {outcome.failure}\n")
