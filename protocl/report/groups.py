"""Which runs belong together: the same configuration, another seed."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocl import metrics
from protocl.metrics import MeanAndSpread
from protocl.report.result import CONFIG_FILE, KINDS
from protocl.report.runs import Run, Skipped

# Where data lie on a machine says nothing about what was learnt.
_LOCATION_KEYS = frozenset({"benchmark.root", "benchmark.path", "benchmark.download"})
_SECTIONS = ("benchmark", "backbone", "strategy")
_FEDERATED_SECTIONS = ("method", "federation", "partition")
_WEIGHTS_KEY = "backbone.checkpoint"
_OWN_WEIGHTS = "each seed's own"


@dataclass
class Group:
    """Runs that differ by their seed alone.

    Attributes:
        runs: in the order of their seeds; at least one.
        label: short name, distinct within the benchmark.
        notes: what a reader of the mean must know (different data under one configuration).
    """

    runs: list[Run]
    label: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def first(self) -> Run:
        """The run with the smallest seed."""
        return self.runs[0]

    @property
    def seeds(self) -> list[int]:
        """Seeds in ascending order."""
        return [run.seed for run in self.runs]

    @property
    def settings(self) -> dict[str, Any]:
        """Dotted keys of the configuration sections that decide what was learnt."""
        settings = _settings(self.first)
        return settings | {_WEIGHTS_KEY: _OWN_WEIGHTS} if self._own_weights else settings

    @property
    def _own_weights(self) -> bool:
        return len({_weights(run) for run in self.runs}) > 1

    def spread(self, measure: Callable[[Run], float | None]) -> MeanAndSpread | None:
        """Mean and spread of ``measure`` over the runs; None unless every run has a value."""
        values = [value for run in self.runs if (value := measure(run)) is not None]
        return metrics.mean_and_spread(values) if len(values) == len(self.runs) else None

    def curve(self) -> list[MeanAndSpread]:
        """Stream accuracy after each experience."""
        columns = zip(*(run.stream_accuracy for run in self.runs), strict=True)
        return [metrics.mean_and_spread(column) for column in columns]

    def rounds(self) -> list[tuple[MeanAndSpread, float]]:
        """Accuracy after each round, and mean bytes up and down until then; of a federation."""
        points, exchanged = [], 0.0
        for column in zip(*(run.rounds for run in self.runs), strict=True):
            exchanged += sum(one.bytes_up + one.bytes_down for one in column) / len(column)
            points.append((metrics.mean_and_spread([one.accuracy for one in column]), exchanged))
        return points

    def mean_accuracy_matrix(self) -> list[list[float]]:
        """Lower-triangular accuracy matrix, averaged over the runs."""
        rows = zip(*(run.accuracy_matrix for run in self.runs), strict=True)
        return [
            [metrics.mean_and_spread(cell).mean for cell in zip(*row, strict=True)] for row in rows
        ]

    def command(self) -> str:
        """The command that makes these runs again; a line for each seed with its own weights."""
        if self._own_weights:
            return "\n".join(Group([run]).command() for run in self.runs)
        seeds = ",".join(str(seed) for seed in self.seeds)
        if not self.first.config:
            run = self.first
            parts = [run.benchmark.name, run.strategy.name, run.backbone.name]
            return "protocl run benchmark={} strategy={} backbone={} seed={}".format(*parts, seeds)
        file = shlex.quote(str(self.first.path / CONFIG_FILE))
        kind = self.first.kind
        return f"protocl {KINDS[kind]} {kind}={file} seed={seeds}"


@dataclass
class Benchmark:
    """Groups that were measured on the same stream and may be compared.

    Attributes:
        label: name and split, distinct among the benchmarks compared.
        groups: the best average incremental accuracy first.
    """

    label: str
    groups: list[Group]

    @property
    def first(self) -> Run:
        """Any run, for what all have in common."""
        return self.groups[0].first

    @property
    def single(self) -> bool:
        """Whether there is only one experience, and so nothing that happens over time."""
        return len(self.first.stream_accuracy) == 1


def group_runs(runs: Iterable[Run]) -> tuple[list[Benchmark], list[Skipped]]:
    """Sort runs into benchmarks and, within each, into groups over seeds.

    Returns:
        The benchmarks, and the runs left out because a newer one repeats them.
    """
    by_benchmark: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        groups = by_benchmark.setdefault(_benchmark_key(run), {})
        groups.setdefault(_learner_key(run), []).append(run)
    repeated: list[Skipped] = []
    benchmarks = []
    for grouped in by_benchmark.values():
        joined = _join_weights_of_seeds(grouped.values())
        groups_here = [_group(members, repeated) for members in joined]
        groups_here.sort(key=_average_accuracy, reverse=True)
        _set_labels(groups_here)
        benchmarks.append(Benchmark(_stream_label(groups_here[0].first), groups_here))
    benchmarks.sort(key=lambda benchmark: benchmark.label)
    _make_distinct(benchmarks)
    return benchmarks, repeated


def differences(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Dotted configuration keys whose values differ, with one value a group (None: absent)."""
    settings = [group.settings for group in groups]
    keys = sorted({key for one in settings for key in one})
    table = {key: [one.get(key) for one in settings] for key in keys}
    return {
        key: values
        for key, values in table.items()
        if any(value != values[0] for value in values[1:])
    }


def _average_accuracy(group: Group) -> float:
    values = [metrics.average_incremental_accuracy(run.stream_accuracy) for run in group.runs]
    return metrics.mean_and_spread(values).mean


def _settings(run: Run) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section in _SECTIONS:
        fallback = {"name": getattr(run, section).name}
        flat.update(_flatten(run.config.get(section) or fallback, section))
    for section in _FEDERATED_SECTIONS:
        flat.update(_flatten(run.config.get(section, {}), section))
    return {key: value for key, value in flat.items() if key not in _LOCATION_KEYS}


def _flatten(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat.update(_flatten(inner, f"{key}.{name}"))
    return flat


def _benchmark_key(run: Run) -> str:
    settings = {k: v for k, v in _settings(run).items() if k.startswith("benchmark.")}
    sizes = [len(classes) for classes in run.experiences]
    return json.dumps([settings, sizes], sort_keys=True, default=str)


def _learner_key(run: Run, without: str = "") -> str:
    settings = {
        key: value
        for key, value in _settings(run).items()
        if not key.startswith("benchmark.") and key != without
    }
    return json.dumps(settings, sort_keys=True, default=str)


def _join_weights_of_seeds(grouped: Iterable[list[Run]]) -> list[list[Run]]:
    """One group of what was evaluated on weights that each seed trained for itself."""
    alike: dict[tuple[str, bool], list[list[Run]]] = {}
    for members in grouped:
        key = _learner_key(members[0], without=_WEIGHTS_KEY), bool(_weights(members[0]))
        alike.setdefault(key, []).append(members)
    joined: list[list[Run]] = []
    for groups in alike.values():
        seeds = Counter(seed for members in groups for seed in {run.seed for run in members})
        # A seed with two weights compares weights; then seeds cannot say which belong together.
        if max(seeds.values()) == 1:
            joined.append([run for members in groups for run in members])
        else:
            joined.extend(groups)
    return joined


def _weights(run: Run) -> str:
    return str(_settings(run).get(_WEIGHTS_KEY) or "")


def _group(members: list[Run], repeated: list[Skipped]) -> Group:
    """One run a seed: the newest, by the time in its directory's name."""
    newest: dict[int, Run] = {}
    for run in sorted(members, key=lambda run: (run.path.name, str(run.path))):
        older = newest.get(run.seed)
        if older is not None:
            reason = f"same configuration and seed {run.seed} as the newer {run.path}"
            repeated.append(Skipped(older.path, reason))
        newest[run.seed] = run
    group = Group([newest[seed] for seed in sorted(newest)])
    if len({run.benchmark.data_hash for run in group.runs}) > 1:
        group.notes.append("the seeds of this group saw different data (benchmark.data_hash)")
    if any(not run.config for run in group.runs):
        group.notes.append("config.yaml is missing: grouped by names alone")
    return group


def _stream_label(run: Run) -> str:
    """Name and split as the field writes it: B50-Inc10 is a base of 50 and steps of 10."""
    sizes = [len(classes) for classes in run.experiences]
    if len(set(sizes)) <= 1:
        split = f"B0-Inc{sizes[0]}" if sizes else "no experience"
    elif len(set(sizes[1:])) == 1:
        split = f"B{sizes[0]}-Inc{sizes[1]}"
    else:
        split = f"{len(sizes)} unequal experiences"
    return f"{run.benchmark.name} {split}"


def _set_labels(groups: Sequence[Group]) -> None:
    """The strategy's title; then the backbone, then the settings that tell equal ones apart."""
    several_backbones = len({group.first.backbone.name for group in groups}) > 1
    for group in groups:
        group.label = group.first.title
        if several_backbones:
            group.label += f" · {group.first.backbone.name}"
    for of_all in (True, False):
        for label in dict.fromkeys(group.label for group in groups):
            _tell_apart([group for group in groups if group.label == label], of_all)


def _tell_apart(same: Sequence[Group], of_all: bool) -> None:
    """Add the settings in which groups of one label differ, or those that all of them have.

    What another head does not know, say, is not in the label of its runs: its name is enough.
    """
    keys = {key for group in same for key in group.settings}
    for key, values in differences(same).items():
        if of_all and not all(key in group.settings for group in same):
            continue
        shown = _shortened(values) if key == _WEIGHTS_KEY else values
        for group, value in zip(same, shown, strict=True):
            group.label += f", {_short_key(key, keys)}={value}"


def _short_key(key: str, keys: Iterable[str]) -> str:
    """The last words of a key, as many as no other of ``keys`` ends in; a name is its part."""
    words = key.removesuffix(".name").split(".")
    ends = [f".{other.removesuffix('.name')}" for other in keys if other != key]
    tails = (".".join(words[-count:]) for count in range(1, len(words)))
    return next((tail for tail in tails if not any(e.endswith(f".{tail}") for e in ends)), key)


def _shortened(files: Sequence[str | None]) -> list[str | None]:
    """Paths without the folders and the file name that all of them share."""
    paths = {file: Path(file).absolute() for file in files if file and file != _OWN_WEIGHTS}
    if not paths:
        return list(files)
    base = os.path.commonpath([path.parent for path in paths.values()])
    same_name = 1 == len({path.name for path in paths.values()}) < len(paths)
    short = {
        file: str((path.parent if same_name else path).relative_to(base))
        for file, path in paths.items()
    }
    return [short.get(file, file) if file else None for file in files]


def _make_distinct(benchmarks: Sequence[Benchmark]) -> None:
    for label, count in Counter(benchmark.label for benchmark in benchmarks).items():
        same = [benchmark for benchmark in benchmarks if benchmark.label == label]
        if count > 1:
            settings = differences([benchmark.groups[0] for benchmark in same])
            for key, values in settings.items():
                if key.startswith("benchmark."):
                    for benchmark, value in zip(same, values, strict=True):
                        benchmark.label += f", {key.removeprefix('benchmark.')}={value}"
