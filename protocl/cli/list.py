"""What ``protocl list`` shows: everything that a name on the command line can mean."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from importlib.resources import files
from itertools import takewhile

import yaml
from rich.table import Table
from rich.text import Text

from protocl.cli.tables import plain_table
from protocl.config.info import StrategyInfo
from protocl.config.presets import group_names
from protocl.errors import ConfigError
from protocl.registry import (
    ADAPTATIONS,
    BACKBONES,
    BENCHMARKS,
    HEADS,
    MAPS,
    METHODS,
    SCORES,
    STRATEGIES,
    TRACKERS,
    Registry,
)
from protocl.source import constant, definition, docstring

_ROLE = re.compile(r":[a-z]+:`~?([^`]*)`")  # cross-references of reStructuredText
_SENTENCE_END = re.compile(r"(?<=\.)\s")

_TITLES = {
    "adaptations": "strategy.session.adapt=NAME",
    "heads": "heads (protocl.heads)",
    "maps": "strategy.head.map=NAME",
    "scores": "scores of unknown inputs (protocl.scores)",
    "trackers": "tracker=NAME",
    "federated": "method=NAME, of protocl federate",
}
"""Kinds that are no group of configuration files."""

_GROUPS: dict[str, tuple[str, Registry | None]] = {
    "benchmarks": ("benchmark", BENCHMARKS),
    "backbones": ("backbone", BACKBONES),
    "adaptations": ("adaptation", ADAPTATIONS),
    "heads": ("head", HEADS),
    "maps": ("map", MAPS),
    "scores": ("score", SCORES),
    "trackers": ("tracker", TRACKERS),
    "federated": ("method", METHODS),
    "experiments": ("experiment", None),
    "federations": ("federation", None),
    "pretrainings": ("pretraining", None),
    "reconnaissance": ("reconnaissance", None),
    "discoveries": ("discovery", None),
}
KINDS = ("strategies", *_GROUPS)


def tables(
    kind: str | None = None, *, no_samples: bool = False, frozen: bool = False
) -> Iterator[Table]:
    """The table of one kind, or those of all.

    Args:
        kind: one of :data:`KINDS`, or None.
        no_samples: only strategies that store no training samples.
        frozen: only strategies whose backbone stays as it is.

    Raises:
        ConfigError: strategies are to be chosen, but another kind is asked for.
    """
    chosen = no_samples or frozen
    if chosen and kind not in (None, "strategies"):
        raise ConfigError(
            f"list {kind}: --no-samples and --frozen choose among strategies; "
            "type protocl list strategies, or leave them out"
        )
    if chosen:
        kind = "strategies"
    for name in KINDS if kind is None else (kind,):
        yield _strategies(no_samples, frozen) if name == "strategies" else _others(name)


def _strategies(no_samples: bool, frozen: bool) -> Table:
    table = plain_table("strategy=NAME")
    table.add_column("name", no_wrap=True)
    table.add_column("method, and what it keeps between experiences")
    table.add_column("bytes a class")
    table.add_column("data kept")
    entries = STRATEGIES.entries()
    for name in group_names("strategy"):
        try:
            info = _info(entries[name if name in entries else _recipe_of(name)])
        except ConfigError as error:  # one broken package must not hide the others
            table.add_row(name, Text(str(error), "red"))
            continue
        if (no_samples and info.keeps_data) or (frozen and info.trains_backbone):
            continue
        if name not in entries:
            table.add_row(name, Text(_comment("strategy", name)))
            continue
        method = info.title if info.paper == "-" else f"{info.title} ({info.paper})"
        kept = Text.assemble(f"{method}\n", (info.stored_between_experiences, "italic"))
        keeps_data = "yes" if info.keeps_data else "no"
        table.add_row(name, kept, Text(info.bytes_per_class), keeps_data)
    return table


def _info(entry: EntryPoint) -> StrategyInfo:
    """What a strategy says of itself in its source, or else when it is imported.

    Raises:
        ConfigError: it has to be imported, and cannot be.
    """
    part = definition(entry)
    stated = None if part is None else constant(part, "info", StrategyInfo)
    info: StrategyInfo = STRATEGIES.load(entry).info if stated is None else stated
    return info


def _recipe_of(name: str) -> str:
    """The strategy that a file of settings is for."""
    text = (files("protocl.configs") / "strategy" / f"{name}.yaml").read_text(encoding="utf-8")
    return str(yaml.safe_load(text).get("name", name))


def _others(kind: str) -> Table:
    group, registry = _GROUPS[kind]
    table = plain_table(_TITLES.get(kind, f"{group}=NAME"))
    table.add_column("name", no_wrap=True)
    table.add_column("what it is")
    entries = registry.entries() if registry else {}
    for name in sorted(entries) if kind in _TITLES else group_names(group):
        text = Text(_comment(group, name))
        if not text and registry is not None:
            text = _description(registry, entries[name])
        table.add_row(name, text)
    return table


def _description(registry: Registry, entry: EntryPoint) -> Text:
    """First sentence of the registered part's docstring."""
    try:
        text = _docstring(registry, entry)
    except ConfigError as error:
        return Text(str(error), "red")
    paragraph = text.partition("\n\n")[0]
    return Text(first_sentence(_ROLE.sub(r"\1", paragraph).replace("`", "")))


def _docstring(registry: Registry, entry: EntryPoint) -> str:
    """The docstring in the part's source, or else the one that it has when it is imported.

    Raises:
        ConfigError: it has to be imported, and cannot be.
    """
    part = definition(entry)
    stated = None if part is None else docstring(part)
    return (inspect.getdoc(registry.load(entry)) or "") if stated is None else stated


def _comment(group: str, name: str) -> str:
    """First sentence of the comment at the head of a file; empty without one."""
    file = files("protocl.configs") / group / f"{name}.yaml"
    if not file.is_file():
        return ""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = takewhile(lambda line: line.startswith("#"), lines)
    return first_sentence(" ".join(line.lstrip("# ") for line in comment))


def first_sentence(text: str) -> str:
    return _SENTENCE_END.split(" ".join(text.split()), maxsplit=1)[0]
