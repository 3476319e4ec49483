"""What all commands share whose arguments are settings: ``KEY=VALUE ...`` and ``--show``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from protocl.errors import ProtoclError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Config = TypeVar("Config", bound=Any)


def add_settings_command(
    commands: Commands,
    common: argparse.ArgumentParser,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    description: str,
    examples: str,
    settings: str = "see above",
) -> None:
    """Add a command whose arguments are settings to the parser of ``protocl``.

    Args:
        commands: the parser's subcommands.
        common: options of every command.
        name: of the command.
        run: called with the parsed arguments; returns the exit code.
        summary: one line for ``protocl --help``.
        description: which settings there are.
        examples: printed after the options.
        settings: help of the settings themselves.
    """
    parser = commands.add_parser(
        name,
        parents=[common],
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="+", metavar="KEY=VALUE", help=settings)
    parser.add_argument("--show", action="store_true", help="print the configuration; do not run")
    parser.set_defaults(command=run)


def run_each(
    configs: Sequence[Config], run: Callable[[Config], Path], *, debug: bool = False
) -> list[Path]:
    """Carry out all runs; one that fails does not stop the others.

    Args:
        configs: one entry a run.
        run: carries one out, and returns its folder.
        debug: let the first failure out as it was raised; so is that of a single run.

    Returns:
        The folders of those that did not fail.
    """
    if len(configs) == 1 or debug:
        return [run(config) for config in configs]
    folders = []
    for config in configs:
        try:
            folders.append(run(config))
        except Exception as error:  # the other runs go on
            known = isinstance(error, ProtoclError)
            what = str(error) if known else f"{type(error).__name__}: {error} (where: add --debug)"
            print(f"failed  {config.name} seed={config.seed}: {what}", file=sys.stderr)  # noqa: T201
    return folders


def print_settings(configs: Iterable[Any]) -> int:
    """Print configurations as YAML documents; the exit code."""
    from protocl.config.compose import to_yaml

    sys.stdout.write("---\n".join(to_yaml(config) for config in configs))
    return 0
