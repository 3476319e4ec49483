"""The command ``protocl``.

Exit codes: 0 done; 1 a run failed; 2 wrong arguments or configuration; 3 data or weights absent;
4 statistics of another backbone; 130 interrupted. Each subcommand imports what it needs when it is
called: ``--help``, ``list`` and what is mistyped do not wait for torch, nor ``doctor`` for
Avalanche.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from protocl import __version__
from protocl.cli.arguments import Commands, add_settings_command
from protocl.cli.completion import answer, asked, shell_code, words_typed
from protocl.errors import ConfigError, ProtoclError
from protocl.lazy import first_imports
from protocl.registry import COMMANDS
from protocl.runner.host_warnings import hidden_host_notices

AddCommand = Callable[[Commands, argparse.ArgumentParser], None]

_LISTS = (
    "strategies", "benchmarks", "backbones", "adaptations", "heads", "maps", "scores", "trackers",
    "federated", "experiments", "federations", "pretrainings", "reconnaissance",
    "discoveries",
)  # fmt: skip

_EXAMPLES = """\
examples:
  protocl run experiment=demo
  protocl run benchmark=digits strategy=slda,ranpac seed=1,2,3 jobs=2
  protocl list strategies
  protocl compare runs/demo --output runs/demo
  protocl doctor
"""

_RUN_HELP = """\
Train and evaluate a strategy on a class-incremental benchmark.

Settings are KEY=VALUE. Three groups pick a file of values and a registered part:
  benchmark=NAME  strategy=NAME  backbone=NAME     (names: protocl list)
Keys inside them:  strategy.lr=0.01  strategy.head.shrinkage=auto  benchmark.protocol=B50-Inc10
Other keys:        seed=1  name=NAME  device=auto|cpu|cuda  output=runs  jobs=2  resume=true
                   tracker=csv, or several in brackets: tracker=[tensorboard,mlflow]
Where runs go:     launcher=local|ray|slurm   jobs of them at a time: in processes here, on Ray's
                   cluster, as jobs of Slurm (slurm.partition=NAME slurm.gpus=1 slurm.cores=8
                   slurm.minutes=240); torchrun shares one run out (docs/many_devices.md)
A whole preset:    experiment=NAME, or experiment=FILE.yaml, such as a run's own config.yaml
A comma makes a sweep; brackets protect lists: benchmark.class_order=[3,1,2,0]
"""

_RUN_EXAMPLES = """\
examples:
  protocl run strategy=nearest_mean
  protocl run benchmark=digits strategy=replay strategy.mem_size=100,200 seed=1,2,3 jobs=2
  protocl run strategy=slda strategy.head.shrinkage=0.1 --show    all keys with their values
  protocl run experiment=demo resume=true                    continue after an interruption
  protocl run experiment=runs/digits-slda/20260131-120000-1/config.yaml

Each run writes OUTPUT/NAME/TIME-SEED/: config.yaml, result.json, TensorBoard events, plots, the
prototype memory, and a checkpoint after each experience until it is finished.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (those of the process by default); the exit code."""
    words = words_typed(sys.argv[1:] if arguments is None else arguments)
    try:
        parser = _parser(words)
    except ProtoclError as error:  # a command whose package is not installed as a whole
        print(f"protocl: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    if asked():
        answer(parser)
    args = parser.parse_args(words)
    try:
        with hidden_host_notices():
            alone = "TORCHELASTIC_RUN_ID" in os.environ and not hasattr(args, "settings")
            code: int = _by_one_process(args, words[0]) if alone else args.command(args)
        sys.stdout.flush()
    except ProtoclError as error:
        if args.debug:
            raise
        print(f"protocl: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        if args.debug:
            raise
        hint = "; the same command with resume=true goes on" if hasattr(args, "settings") else ""
        print(f"protocl: interrupted{hint}", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that may not be written to
        if args.debug:
            raise
        print(f"protocl: {error} (where: add --debug)", file=sys.stderr)  # noqa: T201
        return 1
    return code


def _by_one_process(args: argparse.Namespace, command: str) -> int:
    """Carry out a command that ``torchrun`` must not have each of several processes repeat."""
    from protocl.distributed.launched import is_launched, rank

    if not is_launched():
        code: int = args.command(args)
        return code
    if rank() > 0:
        from protocl.cli.follower import after_the_first

        return after_the_first(ConfigError.exit_code)
    raise ConfigError(
        f"protocl {command} is not distributed, and each process of torchrun would do all of it: "
        "start it without torchrun (protocl stream has --workers and --part)"
    )


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "protocl",
        description="Continual and federated learning on prototype memories.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=f"protocl {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    add_settings_command(
        commands,
        common,
        "run",
        _run,
        summary="run one experiment, or a sweep of them",
        description=_RUN_HELP,
        examples=_RUN_EXAMPLES,
    )

    catalogue = commands.add_parser(
        "list", parents=[common], help="list what a name can mean: strategies, heads, presets"
    )
    catalogue.add_argument(
        "what",
        nargs="?",
        choices=_LISTS,
        help="one list only",
    )
    catalogue.add_argument(
        "--no-samples", action="store_true", help="strategies that store no training samples"
    )
    catalogue.add_argument(
        "--frozen", action="store_true", help="strategies whose backbone stays as it is"
    )
    catalogue.set_defaults(command=_list)

    compare = commands.add_parser(
        "compare",
        parents=[common],
        help="compare runs: mean and spread over seeds, plots, one HTML page",
        epilog="example:\n  protocl compare runs/digits-* --output comparison",
        formatter_class=raw,
    )
    compare.add_argument("paths", nargs="+", type=Path, metavar="RUNS", help="run folders")
    compare.add_argument(
        "--output",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="where report.html, table.md and table.csv go (default: the first RUNS folder)",
    )
    compare.add_argument(
        "--latex", action="store_true", help="write table.tex too, for a paper (booktabs)"
    )
    compare.add_argument(
        "--bibtex", action="store_true", help="write references.bib too: methods and data sets"
    )
    compare.add_argument(
        "--figure", type=Path, metavar="FILE", help="draw one figure: FILE.pdf, .svg or .png"
    )
    compare.add_argument(
        "--against", choices=("classes", "bytes"),
        help="what it shows accuracies against (default: classes seen, or rounds)",
    )  # fmt: skip
    compare.set_defaults(command=_compare)

    doctor = commands.add_parser(
        "doctor", parents=[common], help="check versions, devices and data; say what is missing"
    )
    doctor.add_argument("--root", metavar="FOLDER", help="where the data sets are looked for")
    doctor.set_defaults(command=_doctor)

    completion = commands.add_parser(
        "completion", parents=[common], help="print what makes a shell complete protocl by Tab"
    )
    completion.add_argument("shell", choices=("bash", "zsh"))
    completion.set_defaults(command=_completion)

    bench = commands.add_parser(
        "bench", parents=[common], help="measure speed beside Avalanche's own code"
    )
    if words[:1] == ["bench"]:
        _add_bench(bench)
    for name in COMMANDS.names():
        add_command: AddCommand = COMMANDS.get(name)
        add_command(commands, common)
    return parser


def _add_bench(parser: argparse.ArgumentParser) -> None:
    from protocl.bench.command import add_arguments
    from protocl.bench.command import main as measure

    add_arguments(parser)
    parser.set_defaults(command=measure)


def _run(args: argparse.Namespace) -> int:
    from protocl.config.presets import require_readable

    require_readable(args.settings)
    with first_imports():
        from protocl.cli.sweep import run_command
        from protocl.runner.experiment import EXPERIMENT

    return run_command(EXPERIMENT, args)


def _list(args: argparse.Namespace) -> int:
    from rich.console import Console

    from protocl.cli.list import tables

    console = Console()
    for table in tables(args.what, no_samples=args.no_samples, frozen=args.frozen):
        console.print(table)
    return 0


def _completion(args: argparse.Namespace) -> int:
    sys.stdout.write(shell_code(args.shell))
    return 0


def _compare(args: argparse.Namespace) -> int:
    from rich.console import Console

    from protocl.report.comparison import USUAL, compare

    if args.against is not None and args.figure is None:
        raise ConfigError(
            f"--against {args.against} says what a figure shows: give --figure FILE.pdf with it"
        )
    first: Path = args.paths[0]
    output = args.output or (first if first.is_dir() else first.parent)
    formats = [*USUAL, *(name for name in ("latex", "bibtex") if getattr(args, name))]
    compare(
        args.paths, output, formats=formats, figure=args.figure,
        against=args.against or "classes", console=Console(),
    )  # fmt: skip
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from rich.console import Console

    from protocl.cli.doctor import examine

    return examine(Console(), args.root)
