"""From settings to runs of a kind, and what is shown of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from protocl.cli.display import SweepDisplay
from protocl.cli.follower import follow
from protocl.config.arguments import Settings
from protocl.config.compose import to_yaml
from protocl.distributed.launched import is_launched, joined, rank
from protocl.runner.kind import Kind
from protocl.runner.sweep import Outcome, run_sweep
from protocl.runner.together.sweep import run_together


def run_command(kind: Kind[Any], args: argparse.Namespace) -> int:
    """Carry out all runs that ``args.settings`` ask for, and show them; the exit code."""
    if is_launched() and rank() > 0:
        return follow(kind, args)
    configs = kind.load(args.settings)
    if args.show:
        sys.stdout.write("---\n".join(to_yaml(config) for config in configs))
        return 0
    labels = labels_of(kind.settle(args.settings), configs)
    if is_launched():
        kind.ready(configs)
        with joined(), SweepDisplay(labels, _console()) as display:
            outcomes = run_together(kind, configs, display, debug=args.debug)
    else:
        outcomes = run_all(kind, configs, labels, debug=args.debug)
    return _conclude(kind, outcomes)


def _conclude(kind: Kind[Any], outcomes: Sequence[Outcome]) -> int:
    """Show the runs that went well; the exit code."""
    good = [outcome for outcome in outcomes if outcome.failure is None]
    if good:
        output = _report_folder(good) if len(good) > 1 else None
        kind.show([outcome.folder for outcome in good], output, Console())
    return outcomes[0].exit_code if len(outcomes) == 1 else int(len(good) < len(outcomes))


def run_all(
    kind: Kind[Any], configs: Sequence[Any], labels: Sequence[str], *, debug: bool = False
) -> list[Outcome]:
    """Carry out all runs, and show on standard error how they go.

    Args:
        kind: of all runs.
        configs: one entry a run; the first says how many work side by side.
        labels: what each run is called.
        debug: as for :func:`.run_sweep`.
    """
    with SweepDisplay(labels, _console()) as display:
        return run_sweep(kind, configs, display, jobs=configs[0].jobs, debug=debug)


def _console() -> Console:
    """Standard error; in notebooks lines alone.

    Bars there are widgets of a package of their own, or letters that move a cursor which a notebook
    has not.
    """
    console = Console(stderr=True)
    if not console.is_jupyter:
        return console
    return Console(stderr=True, force_jupyter=False, force_terminal=False)


def labels_of(runs: Sequence[Settings], configs: Sequence[Any]) -> list[str]:
    """What sets the runs apart, as typed: ``"strategy=slda seed=1"``."""
    swept = [key for key in runs[0] if any(run[key] != runs[0][key] for run in runs)]
    if not swept:
        return [f"{config.name} seed={config.seed}" for config in configs]
    return [" ".join(f"{key}={run[key]}" for key in swept) for run in runs]


def _report_folder(outcomes: Sequence[Outcome]) -> Path:
    """The folder common to all runs of a sweep, or a new one if that is the whole output."""
    common = Path(os.path.commonpath([outcome.folder.parent for outcome in outcomes]))
    output = Path(outcomes[0].config.output).expanduser()
    if common != output:
        return common
    return output / f"comparison-{datetime.now():%Y%m%d-%H%M%S}"
