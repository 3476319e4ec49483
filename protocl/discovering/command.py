"""The command ``protocl discover``."""

from __future__ import annotations

import argparse

from protocl.cli.arguments import Commands, add_settings_command
from protocl.lazy import first_imports

_HELP = """\
Discover categories among samples without labels, beside classes that are known.

Settings are KEY=VALUE. discovery=NAME reads a preset; two groups pick parts:
  benchmark=NAME  backbone=NAME
Protocol:   known_classes=80  labelled=0.5  split_seed=0
Categories: categories=given|estimated|100  restarts=10  iterations=100  spherical=true
Space:      map=tukey:power=0.5  whitening=0.1   (whitening=null leaves it out)
Other keys: seed=1  name=NAME  device=auto|cpu|cuda  output=runs  jobs=2  cache=FOLDER
"""

_EXAMPLES = """\
examples:
  protocl discover discovery=gcd_cifar100 benchmark.path=cifar100.npz
  protocl discover benchmark=digits backbone=identity known_classes=6 categories=given,estimated
"""


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of ``protocl``."""
    add_settings_command(
        commands,
        common,
        "discover",
        run,
        summary="find categories nobody named among samples without labels",
        description=_HELP,
        examples=_EXAMPLES,
    )


def run(args: argparse.Namespace) -> int:
    """Discover what ``args.settings`` ask for; the exit code."""
    with first_imports():
        from protocl.cli.sweep import run_command
        from protocl.discovering.run import DISCOVERY

    return run_command(DISCOVERY, args)
