"""The command ``protocl federate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from protocl.cli.arguments import Commands, add_settings_command, print_settings, run_each

if TYPE_CHECKING:
    from rich.console import Console

    from protocl.federation.config import FederateConfig

_HELP = """\
Federate: clients exchange statistics of their classes instead of gradients or samples.

Settings are KEY=VALUE. federation=NAME reads a preset; three groups pick parts:
  benchmark=NAME  backbone=NAME
  method=prototypes|robust|protected|fedavg|fedavg_prototypes|fedproto
Clients and rounds:  clients=100 rounds=5 participation=0.5 evaluate=0.1 lost=0.2 late=0.1
Who holds what:      partition=classes|dirichlet|iid|file|flwr  partition.alpha=0.1
                     partition.classes_per_client=2 partition.growth=none|samples|classes|stream
What is exchanged:   method.head=lda  method.precision=float16  method.exact=true
                     method.distribute=true (the backbone too)
Other keys:          seed=1,2,3  name=NAME  output=runs  resume=true  engine=in_process|ray
                     verify=true (compare with all samples in one place)
A comma makes a sweep.
"""

_EXAMPLES = """\
examples:
  protocl federate federation=digits clients=10 rounds=5 participation=0.5
  protocl federate federation=digits method.head=nearest_mean,lda seed=1,2,3
  protocl federate federation=digits --show            all keys with their values
  protocl federate deploy my-federation                files for a SuperLink and SuperNodes
  protocl federate deploy my-federation method=protected method.noise=distributed

Each run writes OUTPUT/NAME/TIME-SEED/: config.yaml, result.json, TensorBoard events, plots, the
merged memory, the ledger of contributions and the bytes of every message.
"""


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of ``protocl``."""
    add_settings_command(
        commands,
        common,
        "federate",
        federate,
        summary="run a federation of clients, or write files to deploy one",
        description=_HELP,
        examples=_EXAMPLES,
        settings="see above; or: deploy FOLDER [method=NAME method.KEY=VALUE ...]",
    )


def federate(args: argparse.Namespace) -> int:
    """Run what ``args.settings`` asks for; the exit code."""
    if args.settings[0] == "deploy":
        return _deploy(args.settings[1:])
    from rich.console import Console

    from protocl.federation.config.compose import load

    configs = load(args.settings)
    if args.show:
        return print_settings(configs)
    from protocl.report import compare

    notes = Console(stderr=True)
    folders = run_each(configs, lambda config: _run(config, notes), debug=args.debug)
    if folders:
        compare(folders, folders[0].parent if len(configs) > 1 else None, console=Console())
    return int(len(folders) < len(configs))


def _run(config: FederateConfig, console: Console) -> Path:
    from protocl.federation.runner.centralized import OnePlace
    from protocl.federation.runner.run import RoundReport, run_federation
    from protocl.federation.wire.compat import quiet, without_round_reports
    from protocl.runner.folders import run_folder

    quiet()

    def show(report: RoundReport) -> None:
        accuracy = "unknown" if report.accuracy is None else f"{report.accuracy:.4f}"
        console.print(
            f"  round {report.round}/{config.federation.rounds}: accuracy {accuracy} "
            f"on {report.evaluated} samples of {report.classes} classes, "
            f"{_size(report.bytes_up)} up, {_size(report.bytes_down)} down, {report.seconds:.2f} s"
        )

    with without_round_reports(), run_folder(config) as folder:
        console.print(f"{config.name} seed={config.seed} -> {folder}")
        result = run_federation(config, folder, on_round=show)
    if (compared := result["federation"].get("one_place")) is not None:
        console.print(f"  {OnePlace(**compared)}")
    return folder


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _deploy(words: list[str]) -> int:
    from rich.console import Console

    from protocl.errors import ConfigError
    from protocl.federation.config.compose import load, require_deployable
    from protocl.federation.deploy.scaffold import write_deployment

    if not words or "=" in words[0]:
        raise ConfigError("protocl federate deploy FOLDER: give a folder, which must not exist")
    folder, settings = Path(words[0]), words[1:]
    for setting in settings:
        if setting.partition("=")[0].partition(".")[0] != "method":
            raise ConfigError(
                f"{setting}: deploy takes method=NAME and method.KEY=VALUE; all else is in the "
                "pyproject.toml and the task.py that it writes"
            )
    configs = load(settings)
    if len(configs) > 1:
        raise ConfigError(f"{' '.join(settings)}: a deployment has one method, not a sweep")
    require_deployable(configs[0].method)
    files = write_deployment(folder, configs[0].method)
    console = Console()
    for file in files:
        console.print(f"wrote {file}")
    console.print(f"continue with {folder / 'README.md'}")
    return 0
