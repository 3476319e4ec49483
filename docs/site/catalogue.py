"""What is registered: for each kind of part its pages, and what a page says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from protocl import strategies
from protocl.backbones import BackboneConfig
from protocl.data.config import BenchmarkConfig
from protocl.federation.config.schema import METHODS
from protocl.federation.reconnaissance.config import METHODS as MISSIONS
from protocl.registry import (
    ADAPTATIONS,
    BACKBONES,
    BENCHMARKS,
    HEADS,
    MAPS,
    SCORES,
    STRATEGIES,
    Registry,
)
from protocl.strategies.frozen.session import Session


class Kind(NamedTuple):
    """A kind of part with a page for each name.

    Attributes:
        folder: of its pages, and the name of its list.
        title: of the list.
        registry: where the names come from.
        typed: what picks a part on the command line, before its name.
        command: that works as it stands, with the name for ``{}``.
        cited: the kind in ``references.bib``.
        presets: group of the files that have settings for a name.
        shared: what all parts of the kind are configured by, with what is typed before its keys.
    """

    folder: str
    title: str
    registry: Registry
    typed: str
    command: str
    cited: str = ""
    presets: str = ""
    shared: tuple[Any, str] | None = None


KINDS = (
    Kind(
        "strategies", "Strategies", STRATEGIES, "strategy=",
        "protocl run benchmark=digits strategy={}", "strategy", "strategy",
    ),
    Kind(
        "heads", "Heads", HEADS, "strategy.head=",
        "protocl run benchmark=digits strategy=frozen strategy.head={}", "head",
    ),
    Kind(
        "maps", "Feature maps", MAPS, "strategy.head.map=",
        "protocl run benchmark=digits strategy=nearest_mean strategy.head.map={}", "map",
    ),
    Kind(
        "scores", "Scores of unknown inputs", SCORES, "",
        "protocl run benchmark=digits strategy=slda unknown=true",
    ),
    Kind(
        "federated", "Federated methods", METHODS, "method=",
        "protocl federate federation=digits method={}", "federated",
    ),
    Kind(
        "missions", "Methods of reconnaissance", MISSIONS, "method=",
        "protocl reconnaissance reconnaissance=digits method={}",
    ),
    Kind(
        "benchmarks", "Benchmarks", BENCHMARKS, "benchmark.name=",
        "protocl run benchmark.name={} strategy=slda", presets="benchmark",
        shared=(BenchmarkConfig(), "benchmark."),
    ),
    Kind(
        "backbones", "Backbones", BACKBONES, "backbone=",
        "protocl run benchmark=split_cifar100 strategy=slda backbone={}", presets="backbone",
        shared=(BackboneConfig(), "backbone."),
    ),
    Kind(
        "adaptations", "Adaptations", ADAPTATIONS, "strategy.session.adapt=",
        "protocl run benchmark=split_cifar100 strategy=slda strategy.session.adapt={}",
        shared=(Session(), "strategy.session."),
    ),
)  # fmt: skip


def names(kind: Kind) -> Iterator[tuple[str, Any]]:
    """Name and registered object of every part that protocl itself brings."""
    for name, entry in sorted(kind.registry.entries().items()):
        if entry.value.startswith("protocl."):
            yield name, kind.registry.load(entry)


def ready_made(config: Any) -> Any | None:
    """The public class of :mod:`protocl.strategies` that a strategy's settings are for."""
    for name in strategies.__all__:
        made = getattr(strategies, name)
        own = getattr(made, "settings", None) is config
        beside = config.__module__ == getattr(made, "__module__", "")
        if isinstance(made, type) and (own or (beside and issubclass(made, _host()))):
            return made
    return None


def described(kind: Kind, part: Any) -> Any:
    """The class whose docstring says what the part is."""
    made = ready_made(part) if kind.registry is STRATEGIES else None
    return part if made is None else made


def module_doc(part: Any) -> str:
    """What the file of a part says at its head."""
    return inspect.getdoc(inspect.getmodule(part)) or ""


def _host() -> Callable[..., Any]:
    from avalanche.training.templates import SupervisedTemplate

    return SupervisedTemplate
