"""What ``protocl list`` shows: everything that a name on the command line can mean."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib.resources import files

from rich.table import Table
from rich.text import Text

from protocl.config import StrategyConfig
from protocl.errors import ConfigError
from protocl.registry import ADAPTATIONS, BACKBONES, BENCHMARKS, HEADS, STRATEGIES, Registry
from protocl.settings import group_names

_ROLE = re.compile(r":[a-z]+:`~?([^`]*)`")  # cross-references of reStructuredText
KINDS = ("strategies", "benchmarks", "backbones", "adaptations", "heads", "experiments")


def tables(kind: str | None = None) -> Iterator[Table]:
    """The table of one kind, or those of all.

    Args:
        kind: one of :data:`KINDS`, or None.
    """
    for name in KINDS if kind is None else (kind,):
        yield _strategies() if name == "strategies" else _others(name)


def _strategies() -> Table:
    table = Table(title="strategy=NAME", title_justify="left", title_style="bold")
    table.add_column("name", no_wrap=True)
    for column in ("method", "paper", "kept between experiences", "bytes a class", "data"):
        table.add_column(column, overflow="fold")
    for name in group_names("strategy"):
        if name not in STRATEGIES.names():
            table.add_row(name, _first_comment("strategy", name))
            continue
        try:
            schema: type[StrategyConfig] = STRATEGIES.get(name)
        except ConfigError as error:  # one broken package must not hide the others
            table.add_row(name, Text(str(error), "red"))
            continue
        info = schema.info
        keeps = "yes" if info.keeps_data else "no"
        stored = info.stored_between_experiences
        cells = (info.title, info.paper, stored, info.bytes_per_class, keeps)
        table.add_row(name, *(Text(cell) for cell in cells))
    return table


def _others(kind: str) -> Table:
    group, registry = _GROUPS[kind]
    title = _TITLES.get(kind, f"{group}=NAME")
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("name", "what it is"):
        table.add_column(column, overflow="fold")
    names = registry.names() if kind in _TITLES and registry else group_names(group)
    for name in names:
        table.add_row(name, _description(group, name, registry))
    return table


_TITLES = {"adaptations": "strategy.adapt=NAME", "heads": "heads (protocl.heads)"}
"""Kinds that are no group of configuration files."""

_GROUPS: dict[str, tuple[str, Registry | None]] = {
    "benchmarks": ("benchmark", BENCHMARKS),
    "backbones": ("backbone", BACKBONES),
    "adaptations": ("adaptation", ADAPTATIONS),
    "heads": ("head", HEADS),
    "experiments": ("experiment", None),
}


def _description(group: str, name: str, registry: Registry | None) -> Text:
    """First line of the YAML file's comment, else of the registered part's docstring."""
    comment = _first_comment(group, name)
    if comment or registry is None:
        return Text(comment)
    try:
        part = registry.get(name)
    except ConfigError as error:
        return Text(str(error), "red")
    first = (inspect.getdoc(part) or "").partition("\n")[0]
    return Text(_ROLE.sub(r"\1", first).replace("`", ""))


def _first_comment(group: str, name: str) -> str:
    file = files("protocl.configs") / group / f"{name}.yaml"
    if not file.is_file():
        return ""
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""
