"""What ``protocl doctor`` checks: versions, devices, data, optional parts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, metadata, requires

from packaging.requirements import Requirement
from rich.console import Console
from rich.text import Text

from protocl.cli.tables import plain_table
from protocl.data import BenchmarkConfig, load_data
from protocl.data.digits import count_digits
from protocl.errors import ConfigError, ProtoclError
from protocl.io.provenance import available_cores, installed_version
from protocl.registry import (
    BACKBONES,
    BENCHMARKS,
    HEADS,
    MAPS,
    STRATEGIES,
    TRACKERS,
    Registry,
)
from protocl.source import definition

_BROUGHT_BY_USER = ("npz", "image_folder", "arrays", "table", "hf", "torchvision")
_SIGNS = {"ok": "[green]ok[/green]", "absent": "[yellow]absent[/yellow]", "bad": "[red]bad[/red]"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what it is.
        state: ``"ok"``; ``"absent"`` for something optional; ``"bad"`` for what must be mended.
        detail: what was found, or what to do.
    """

    subject: str
    state: str
    detail: str


def examine(console: Console, root: str | None = None) -> int:
    """Print what is there and what is missing; 0, or 1 if protocl cannot work.

    Args:
        console: where to print.
        root: folder of the data sets, if not the usual one.
    """
    bad = 0
    for title, findings in (
        ("packages", packages()),
        ("devices", devices()),
        ("registered parts", parts()),
        ("data", data_sets(root)),
    ):
        table = plain_table(title)
        for column in ("", "state", "detail"):
            table.add_column(column, overflow="fold")
        with console.status(f"looking at {title}"):
            for finding in findings:
                table.add_row(finding.subject, _SIGNS[finding.state], Text(finding.detail))
                bad += finding.state == "bad"
        console.print(table)
    return int(bad > 0)


def packages() -> Iterator[Finding]:
    """What protocl requires, and what its extras would bring."""
    for text in requires("protocl") or []:
        requirement = Requirement(text)
        extra = _extra_of(requirement)
        if extra == "dev" or requirement.name == "protocl":
            continue
        found = installed_version(requirement.name)
        wanted = f"{requirement.name}{requirement.specifier}"
        if found is not None and requirement.specifier.contains(found, prereleases=True):
            yield Finding(requirement.name, "ok", found)
        elif found is not None:
            advice = f"{found} is installed; pip install '{wanted}'"
            yield Finding(requirement.name, "bad", advice)
        elif extra is None:
            yield Finding(requirement.name, "bad", f"pip install '{wanted}'")
        else:
            yield Finding(requirement.name, "absent", f"optional: pip install '{wanted}'")


def devices() -> Iterator[Finding]:
    """Processors that a run can use."""
    cores, memory = available_cores(), _memory_gib()
    yield Finding("cpu", "ok", f"{cores} cores, {memory:.1f} GiB memory")
    import torch

    if not torch.cuda.is_available():
        yield Finding("cuda", "absent", "no CUDA device: device=auto takes the CPU")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        size = device.total_memory / 2**30
        yield Finding(f"cuda:{index}", "ok", f"{device.name}, {size:.1f} GiB memory")


def parts() -> Iterator[Finding]:
    """Whether everything registered under protocl's entry points is there.

    Other packages' parts are imported. Our own are looked up in their source, since importing them
    takes seconds; what they import are the packages of :func:`packages`.
    """
    for registry in (STRATEGIES, HEADS, MAPS, BACKBONES, BENCHMARKS, TRACKERS):
        entries = registry.entries()
        broken = [_import_error(registry, entry) for entry in entries.values()]
        errors = [error for error in broken if error is not None]
        if errors or not entries:
            yield Finding(registry.group, "bad", "; ".join(errors) or "nothing is registered")
        else:
            yield Finding(registry.group, "ok", ", ".join(sorted(entries)))


def data_sets(root: str | None = None) -> Iterator[Finding]:
    """Which data sets can be read here; each is read in full."""
    for name in BENCHMARKS.names():
        if name in _BROUGHT_BY_USER:
            yield Finding(name, "ok", f"your own data: benchmark={name} benchmark.path=PATH")
            continue
        if name == "digits" and (images := count_digits()):
            yield Finding(name, "ok", f"{images:,} images, embedded in scikit-learn")
            continue
        config = BenchmarkConfig(name=name)
        if root is not None:
            config.root = root
        try:
            data = load_data(config)
        except ProtoclError as error:
            yield Finding(name, "absent", str(error))
            continue
        size = f"{len(data.x_train)} training and {len(data.x_test)} test samples"
        yield Finding(name, "ok", f"{data.n_classes} classes, {size}")


def _extra_of(requirement: Requirement) -> str | None:
    """The extra that asks for a requirement, or None if it is always asked for."""
    marker = requirement.marker
    if marker is None or marker.evaluate({"extra": ""}):
        return None
    extras = metadata("protocl").get_all("Provides-Extra") or []
    return next((extra for extra in extras if marker.evaluate({"extra": extra})), None)


def _import_error(registry: Registry, entry: EntryPoint) -> str | None:
    ours = entry.dist is not None and entry.dist.name == "protocl"
    if ours and definition(entry) is not None:
        return None
    try:
        registry.load(entry)
    except ConfigError as error:
        return str(error)
    return None


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
