"""The command ``protocl pretrain``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from protocl.cli.arguments import Commands, add_settings_command, print_settings, run_each

if TYPE_CHECKING:
    from protocl.pretraining.config import PretrainConfig

_HELP = """\
Train an embedding on base classes: the network that prototypes are means of.

Settings are KEY=VALUE. pretraining=NAME reads a preset; three groups pick parts:
  benchmark=NAME  backbone=NAME  objective=cosine|episodes
Base classes:  benchmark.base_classes=50  holdout=10  rotations=true  whole=true
Training:      epochs=20 lr=0.003 weight_decay=0.01 distortion={degrees:12,elastic:0.05}
Other keys:    seed=1  name=NAME  device=auto|cpu|cuda  output=runs  resume=true
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
    configs = load(args.settings)
    if args.show:
        return print_settings(configs)
    done = run_each(configs, _train, debug=args.debug)
    return int(len(done) < len(configs))


def load(arguments: Sequence[str]) -> list[PretrainConfig]:
    """The configurations that ``arguments`` ask for; a comma makes a sweep.

    Raises:
        ConfigError: an unknown key or name, or a value that does not fit its key.
    """
    from protocl.config.compose import build
    from protocl.config.presets import settle
    from protocl.pretraining.config import OBJECTIVES, PretrainConfig
    from protocl.registry import BACKBONES, BENCHMARKS

    groups = {"benchmark": BENCHMARKS, "backbone": BACKBONES, "objective": OBJECTIVES}
    defaults = {"benchmark": "digits", "backbone": "conv4", "objective": "cosine"}
    return [
        build(PretrainConfig, settings, groups, defaults)
        for settings in settle(arguments, "pretraining")
    ]


def _train(config: PretrainConfig) -> Path:
    from rich.console import Console

    from protocl.pretraining.run import BACKBONE_FILE, EpochReport, pretrain
    from protocl.runner.folders import run_folder

    console = Console(stderr=True)

    def show(report: EpochReport) -> None:
        held_out = "" if report.accuracy is None else f", held out {report.accuracy:.4f}"
        console.print(
            f"  epoch {report.epoch}/{config.epochs}: loss {report.loss:.4f}{held_out}, "
            f"{report.seconds:.1f} s"
        )

    with run_folder(config) as folder:
        console.print(f"{config.name} seed={config.seed} -> {folder}")
        pretrain(config, folder, on_epoch=show)
    console.print(f"wrote {folder / BACKBONE_FILE}")
    return folder
