"""The command ``protocl bench``: run groups of cases, print a table, write JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from protocl.bench.comparison import SIZES, Group, Size, SpeedComparison
from protocl.bench.timing import thread_count
from protocl.io.atomic import atomic_write
from protocl.io.provenance import available_cores, machine, versions
from protocl.registry import Registry

GROUPS = Registry("protocl.speed", "benchmark group")
FORMAT = 1
_WIDTHS = {"ours": 10, "peer": 10, "ratio": 7, "target": 8, "met": 3}
_SIGNS = {"speedup": ">=", "cost": "<=", "share": "<=", "limit": "<="}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``protocl bench``."""
    parser.add_argument(
        "groups", nargs="*", metavar="GROUP", help="groups to measure (default: all that exist)"
    )
    parser.add_argument(
        "--size", choices=sorted(SIZES), default="full", help="'small' only shows that all runs"
    )
    parser.add_argument(
        "--threads", type=int, default=None, help="threads of torch (default: one for each core)"
    )
    parser.add_argument(
        "--device", metavar="NAME", default=None,
        help="where accelerator and steps are measured: cpu, cuda (default: cpu)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=None, help="also write a JSON file, and curves beside it"
    )
    parser.add_argument(
        "--runs", type=_positive, default=None, help="of each process, for script (default: 5)"
    )
    parser.add_argument(
        "--cifar100", metavar="PATH", default=None,
        help="CIFAR-100 for script: an .npz archive, or the folder of torchvision's download",
    )  # fmt: skip
    parser.add_argument(
        "--per-class", type=_positive, default=None, metavar="N",
        help="training images a class of it (default: 30; all: 500), a third as many for testing",
    )  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Run ``protocl bench`` with parsed arguments; the exit code.

    A missed target is reported and does not change the code: times vary with the machine.

    Raises:
        ConfigError: an unknown group.
    """
    size, threads = _size(args), args.threads or available_cores()
    console = Console()
    found: list[SpeedComparison] = []
    with Console(stderr=True).status("measuring") as status:
        for group, comparison in run(args.groups, size=size, threads=threads):
            found.append(comparison)
            status.update(f"measuring {group} ({len(found)} cases so far)")
            if args.output is not None:  # some groups take an hour, and may be stopped
                content = json.dumps(report(found, size, threads), indent=2)
                atomic_write(args.output, f"{content}\n")
    console.print(table(found, threads, size.device))
    if args.output is not None:
        console.print(f"written to {args.output}")
        if any(comparison.point for comparison in found):
            from protocl.bench.curves import curves
            from protocl.report.plots import png

            picture = args.output.with_suffix(".png")
            atomic_write(picture, png(curves(found)))
            console.print(f"curves in {picture}")
    return 0


def _size(args: argparse.Namespace) -> Size:
    """The size that was asked for, with what was asked for besides."""
    given = {name: getattr(args, name) for name in ("runs", "cifar100", "per_class", "device")}
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(SIZES[args.size], **changes)


def _positive(text: str) -> int:
    """A whole number from 1 on, as argparse asks for it."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from 1 on")
    return int(text)


def run(
    names: Sequence[str] = (), *, size: Size = SIZES["full"], threads: int = 1
) -> Iterator[tuple[str, SpeedComparison]]:
    """Measure groups of cases one after the other.

    Args:
        names: registered groups; all of them if empty.
        size: amount of data.
        threads: threads of torch; a group that measures a training loop uses one.

    Yields:
        the group's name and one comparison, as soon as it is known.

    Raises:
        ConfigError: a name that is not registered, before anything is measured.
    """
    groups: dict[str, Group] = {name: GROUPS.get(name) for name in names or GROUPS.names()}
    for name, group in groups.items():
        with thread_count(threads):
            for comparison in group(size):
                yield name, comparison


def report(comparisons: Sequence[SpeedComparison], size: Size, threads: int) -> dict[str, Any]:
    """Results with the machine and the versions that they hold for, ready for JSON."""
    return {
        "format": FORMAT,
        "size": vars(size),
        "machine": machine(size.device, threads),
        "versions": versions(),
        "comparisons": [comparison.as_dict() for comparison in comparisons],
    }


def table(comparisons: Sequence[SpeedComparison], threads: int, device: str = "cpu") -> Stack:
    """A line for each case, and below it one for each thing that it was measured against."""
    place = "the CPU" if device == "cpu" else device
    title = f"Side by side on {place}, torch {torch.__version__}, threads: {threads}"
    parts: list[RenderableType] = [Text(title, "italic"), _rows([["case, against", *_WIDTHS]])]
    for case, against in groupby(comparisons, key=attrgetter("case")):
        parts.append(Text(case, "bold"))
        parts.append(_rows([[one.peer_name, *_cells(one)] for one in against], indent=2))
    return Stack(*parts)


def _rows(rows: Sequence[Sequence[str]], indent: int = 0) -> Table:
    """Lines of one name and five numbers; the columns of all such tables stand below each other."""
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(ratio=1)
    for width in _WIDTHS.values():
        grid.add_column(justify="right", no_wrap=True, width=width)
    for name, *cells in rows:
        grid.add_row(Padding(Text(name), (0, 0, 0, indent)), *cells)
    return grid


def _cells(comparison: SpeedComparison) -> list[str]:
    limit = comparison.kind == "limit"
    target = comparison.target
    return [
        _amount(comparison.ours, comparison.unit),
        "-" if comparison.peer is None else _amount(comparison.peer, comparison.unit),
        "-" if limit else f"{comparison.value:.3g}x",
        "-" if target is None else f"{_SIGNS[comparison.kind]} {target:g}{'' if limit else 'x'}",
        {True: "[green]yes[/]", False: "[red]no[/]", None: "-"}[comparison.met],
    ]


def _amount(value: float, unit: str) -> str:
    if unit == "MiB":
        return f"{value:.1f} MiB"
    if value >= 1:
        return f"{value:.4g} s"
    return f"{1e3 * value:.4g} ms" if value >= 1e-3 else f"{1e6 * value:.4g} us"
