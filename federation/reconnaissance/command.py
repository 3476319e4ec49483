"""The command ``protocl reconnaissance``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from protocl.cli.arguments import Commands, add_settings_command, print_settings, run_each

if TYPE_CHECKING:
    from rich.console import Console

    from protocl.federation.reconnaissance.config import ReconnaissanceConfig

_HELP = """\
Federated reconnaissance: clients learn classes on missions, merge, and are asked about all.

Settings are KEY=VALUE. reconnaissance=NAME reads a preset; three groups pick parts:
  benchmark=NAME  backbone=NAME  method=prototypes|fedavg|exemplars|finetune|joint
Who sees what when:  scenario.clients=5 scenario.schedule=disjoint|overlapping|handover|random
                     scenario.classes_per_mission=5 scenario.samples_per_class=30
Who meets whom:      scenario.merge=star|gossip scenario.every=1
The very same again: scenario.file=RUN/scenario.json
What is learned:     method.head=lda  benchmark.base_classes=50  unknown=true
Other keys:          seed=1,2,3  name=NAME  output=runs  resume=true
A comma makes a sweep; curves over its seeds are drawn where there are several.
"""

_EXAMPLES = """\
examples:
  protocl reconnaissance reconnaissance=digits
  protocl reconnaissance reconnaissance=digits method=prototypes,fedavg,joint seed=1,2,3
  protocl reconnaissance reconnaissance=digits scenario.merge=gossip
"""


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of ``protocl``."""
    add_settings_command(
        commands,
        common,
        "reconnaissance",
        run,
        summary="evaluate methods of federated class-incremental learning in one scenario",
        description=_HELP,
        examples=_EXAMPLES,
    )


def run(args: argparse.Namespace) -> int:
    """Run what ``args.settings`` ask for; the exit code."""
    from rich.console import Console

    configs = load(args.settings)
    if args.show:
        return print_settings(configs)
    from protocl.federation.reconnaissance.curves import write_curves
    from protocl.report import compare

    notes = Console(stderr=True)
    folders = run_each(configs, lambda config: _run(config, notes), debug=args.debug)
    if not folders:
        return 1
    several = len(configs) > 1
    compare(folders, folders[0].parent if several else None, console=Console())
    for file in write_curves(folders, folders[0].parent if several else folders[0]):
        notes.print(f"wrote {file}")
    return int(len(folders) < len(configs))


def load(arguments: Sequence[str]) -> list[ReconnaissanceConfig]:
    """The configurations of all runs that ``arguments`` ask for; a comma makes a sweep.

    Raises:
        ConfigError: an unknown key or name, or a value that does not fit its key.
    """
    from protocl.config.compose import build
    from protocl.config.presets import settle
    from protocl.federation.reconnaissance.config import METHODS, ReconnaissanceConfig
    from protocl.registry import BACKBONES, BENCHMARKS

    groups = {"benchmark": BENCHMARKS, "backbone": BACKBONES, "method": METHODS}
    defaults = {"benchmark": "digits", "backbone": "identity", "method": "prototypes"}
    return [
        build(ReconnaissanceConfig, settings, groups, defaults)
        for settings in settle(arguments, "reconnaissance")
    ]


def _run(config: ReconnaissanceConfig, console: Console) -> Path:
    from protocl.federation.reconnaissance.measures import StepReport
    from protocl.federation.reconnaissance.run import run_reconnaissance
    from protocl.federation.wire.compat import quiet
    from protocl.runner.folders import run_folder

    quiet()

    def show(report: StepReport) -> None:
        alone = "" if report.alone is None else f", alone {report.alone:.4f}"
        unknown = "".join(f", {name} AUROC {area:.3f}" for name, area in report.unknown.items())
        console.print(
            f"  step {report.step}: accuracy {report.accuracy:.4f} on {report.classes} classes"
            f"{alone}{unknown}, {report.bytes_up} B up, {report.bytes_down} B down"
        )

    with run_folder(config) as folder:
        console.print(f"{config.name} seed={config.seed} -> {folder}")
        run_reconnaissance(config, folder, on_step=show)
    return folder
