"""What all commands share whose arguments are settings: ``KEY=VALUE ...`` and ``--show``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


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
