"""The self-contained page ``report.html``: everything inline, readable in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from omegaconf import OmegaConf

from protocl.metrics import MeanAndSpread, mean_and_spread
from protocl.report import figures, table
from protocl.report.columns import Column
from protocl.report.groups import Benchmark, Group, differences
from protocl.report.page_template import fill, resource
from protocl.report.paired import Difference, paired_differences
from protocl.report.plots import accuracy_curve, round_curve, svg_data_uri
from protocl.report.runs import Run, Skipped

_PHASE_ORDER = ("data", "features", "train", "eval")


@dataclass(frozen=True)
class Card:
    """One captioned picture; ``detail`` says which run or mean it shows."""

    title: str
    detail: str
    picture: str


@dataclass(frozen=True)
class PhaseTable:
    """Mean seconds and highest memory of every group (row) in every phase (column).

    Attributes:
        phases: column names.
        seconds: one row a group, one mean over seeds a phase.
        peak_mib: likewise, the highest of all seeds.
    """

    phases: list[str]
    seconds: list[list[float]]
    peak_mib: list[list[float]]


@dataclass(frozen=True)
class Section:
    """All that the page shows of one benchmark; of a single experience no curve, no matrices."""

    benchmark: Benchmark
    columns: list[Column]
    rows: list[table.Row]
    paired: list[Difference]
    curve: str
    curve_table: list[list[str]]
    rounds: str
    final: str
    time: str
    accuracy_cards: list[Card]
    confusion_cards: list[Card]
    phases: PhaseTable
    differences: dict[str, list[Any]]
    configs: list[str]


def render(benchmarks: Sequence[Benchmark], skipped: Sequence[Skipped]) -> str:
    """The page as HTML text; it refers to nothing outside itself."""
    runs = [run for one in benchmarks for group in one.groups for run in group.runs]
    return fill(
        "report.html.j2",
        style=resource("report.css"),
        sections=[_section(benchmark) for benchmark in benchmarks],
        skipped=skipped,
        runs=runs,
        versions=_versions(runs),
        protocl_version=version("protocl"),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def phase_table(groups: Sequence[Group]) -> PhaseTable:
    """Times and memory by phase; phases in the order of a run."""
    names = {phase.phase for group in groups for run in group.runs for phase in run.phases}
    known = [name for name in _PHASE_ORDER if name in names]
    phases = known + sorted(names.difference(known))
    return PhaseTable(
        phases,
        [[_mean_seconds(group, phase) for phase in phases] for group in groups],
        [[_highest_mib(group, phase) for phase in phases] for group in groups],
    )


def _section(benchmark: Benchmark) -> Section:
    groups = benchmark.groups
    labels = [group.label for group in groups]
    curves = [accuracy_curve(group) for group in groups]
    final = [curve.accuracy[-1] for curve in curves]
    phases = phase_table(groups)
    seconds = {name: [row[i] for row in phases.seconds] for i, name in enumerate(phases.phases)}
    return Section(
        benchmark=benchmark,
        columns=table.columns(benchmark),
        rows=table.rows(benchmark),
        paired=paired_differences(benchmark),
        curve="" if benchmark.single else svg_data_uri(figures.accuracy_curves(curves)),
        curve_table=[[_percent(point) for point in curve.accuracy] for curve in curves],
        rounds=_rounds(groups),
        final=svg_data_uri(figures.final_bars(labels, final)),
        time=svg_data_uri(figures.phase_bars(labels, seconds)),
        accuracy_cards=[] if benchmark.single else [_accuracy_card(group) for group in groups],
        confusion_cards=[_confusion_card(group) for group in groups],
        phases=phases,
        differences=differences(groups),
        configs=[_config_text(group) for group in groups],
    )


def _rounds(groups: Sequence[Group]) -> str:
    """Accuracy of federations against rounds and bytes; empty where there is none."""
    curves = [round_curve(group) for group in groups if group.first.rounds]
    return svg_data_uri(figures.round_curves(curves)) if curves else ""


def _accuracy_card(group: Group) -> Card:
    n = len(group.runs)
    detail = f"mean over {n} seeds" if n > 1 else f"seed {group.first.seed}"
    picture = svg_data_uri(figures.accuracy_matrix(group.mean_accuracy_matrix()))
    return Card(group.label, detail, picture)


def _confusion_card(group: Group) -> Card:
    picture = svg_data_uri(figures.confusion_matrix(group.first))
    return Card(group.label, f"seed {group.first.seed}", picture)


def _config_text(group: Group) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(group.first.config)) if group.first.config else ""


def _percent(value: MeanAndSpread) -> str:
    mean = f"{100 * value.mean:.1f}"
    return mean if value.std is None else f"{mean} ± {100 * value.std:.1f}"


def _mean_seconds(group: Group, phase: str) -> float:
    totals = [sum(one.seconds for one in run.phases if one.phase == phase) for run in group.runs]
    return mean_and_spread(totals).mean


def _highest_mib(group: Group, phase: str) -> float:
    return max(
        (one.peak_mib for run in group.runs for one in run.phases if one.phase == phase),
        default=0.0,
    )


def _versions(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Package -> the versions that the runs used, normally one."""
    names = sorted({name for run in runs for name in run.versions})
    return {
        name: sorted({str(run.versions[name]) for run in runs if name in run.versions})
        for name in names
    }
