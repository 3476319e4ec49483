"""The command ``protocl pretrain``."""

from __future__ import annotations

import argparse

from protocl.cli.arguments import Commands, add_settings_command
from protocl.lazy import first_imports

_HELP = """\
Train an embedding on base classes: the network that prototypes are means of.

Settings are KEY=VALUE. pretraining=NAME reads a preset; three groups pick parts:
  benchmark=NAME  backbone=NAME  objective=cosine|episodes
Base classes:  benchmark.base_classes=50  holdout=10  rotations=true  whole=true
Training:      epochs=20 lr=0.003 weight_decay=0.01 distortion={degrees:12,elastic:0.05}
Other keys:    seed=1  name=NAME  device=auto|cpu|cuda  output=runs  jobs=2  resume=true
"""

_EXAMPLES = """\
examples:
  protocl pretrain pretraining=omniglot benchmark.path=omniglot.npz
  protocl pretrain benchmark=digits backbone=conv4 benchmark.base_classes=5 objective=episodes \\
      objective.ways=5

The run's backbone.safetensors goes wherever backbone.checkpoint= is read.
"""


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of ``protocl``."""
    add_settings_command(
        commands,
        common,
        "pretrain",
        run,
        summary="train an embedding on base classes",
        description=_HELP,
        examples=_EXAMPLES,
    )


def run(args: argparse.Namespace) -> int:
    """Train what ``args.settings`` ask for; the exit code."""
    with first_imports():
        from protocl.cli.sweep import run_command
        from protocl.pretraining.run import PRETRAINING

    return run_command(PRETRAINING, args)
