"""Draw a scenario from its settings and a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from protocl.data.arrays import ArrayData
from protocl.errors import ConfigError
from protocl.federation.reconnaissance.config import ScenarioConfig
from protocl.federation.reconnaissance.meetings import meetings
from protocl.federation.reconnaissance.scenario import Mission, Scenario, Step
from protocl.federation.reconnaissance.unlabelled import hide_labels, revisit

Plan = list[list[Mission]]
"""For every step its missions."""


@dataclass(frozen=True)
class Pool:
    """Samples among which missions are drawn.

    Attributes:
        train: class id -> rows of its training samples, in the order in which they are seen.
        test: rows of the test samples of all classes.
    """

    train: dict[int, list[int]]
    test: list[int]


def draw_scenario(
    config: ScenarioConfig, data: ArrayData, base: Sequence[int], field: Sequence[int], seed: int
) -> Scenario:
    """The scenario that settings and seed stand for.

    Args:
        config: settings.
        data: only labels and hash are read.
        base: class ids known from the start.
        field: class ids to be learned, in the order in which schedules deal them.
        seed: of all draws.

    Raises:
        ConfigError: a setting is out of range, or there are too few classes or samples.
    """
    if config.schedule == "client":
        config = _with_named_clients(config, data)
    field = field[: config.field_classes]
    _validate(config, len(field))
    random = np.random.default_rng(seed)
    shown = base if config.base_in_memory else []
    pool = _draw_pool(config, data, [*shown, *field], random)
    plan = _plan(config, data, {c: pool.train[c] for c in field}, random)
    plan = plan[: config.missions]
    met = meetings(config, [{m.client for m in missions} for missions in plan], random)
    steps = [
        Step(tuple(missions), tuple(pairs))
        for missions, pairs in zip([*plan, *[[]] * (len(met) - len(plan))], met, strict=True)
    ]
    labels = torch.cat([data.y_train, data.y_test]).tolist()
    hidden = hide_labels(config, steps, labels, seed)
    base_rows, dealt = revisit(config, {c: pool.train[c] for c in shown}, hidden, seed)
    return Scenario(
        data.content_hash, config.clients, tuple(base_rows), tuple(pool.test), dealt, seed
    )


def _with_named_clients(config: ScenarioConfig, data: ArrayData) -> ScenarioConfig:
    if data.clients is None:
        raise ConfigError(
            f"scenario.schedule=client: the data of benchmark '{data.name}' do not say who holds "
            "what; name the column in benchmark.columns.client, or choose another schedule"
        )
    if config.redraw:
        raise ConfigError("scenario.redraw=true: nobody holds the test samples; leave it out")
    return replace(config, clients=len(data.client_names))


def _plan(
    config: ScenarioConfig,
    data: ArrayData,
    field: dict[int, list[int]],
    random: np.random.Generator,
) -> Plan:
    if config.schedule != "client":
        return SCHEDULES[config.schedule](config, field, random)
    assert data.clients is not None  # else it was refused
    holder = data.clients.tolist()
    held: list[dict[int, list[int]]] = [{} for _ in range(config.clients)]
    for c, rows in field.items():
        for row in _limited(config, rows):
            held[holder[row]].setdefault(c, []).append(row)
    return _missions(config, held)


def _draw_pool(
    config: ScenarioConfig, data: ArrayData, classes: Sequence[int], random: np.random.Generator
) -> Pool:
    y_train, y_test = data.y_train.numpy(), data.y_test.numpy()
    train, test = {}, []
    for c in classes:
        mine = (y_train == c).nonzero()[0]
        asked = (y_test == c).nonzero()[0] + len(y_train)
        if config.redraw:
            both = random.permutation(np.concatenate([mine, asked]))
            mine, asked = both[: len(mine)], both[len(mine) :]
        train[c] = random.permutation(mine).tolist()
        test += asked.tolist()
    return Pool(train, test)


# -- schedules ----------------------------------------------------------------------------------


def _disjoint(
    config: ScenarioConfig, field: dict[int, list[int]], random: np.random.Generator
) -> Plan:
    held = [list(field)[client :: config.clients] for client in range(config.clients)]
    return _missions(config, [{c: _limited(config, field[c]) for c in mine} for mine in held])


def _overlapping(
    config: ScenarioConfig, field: dict[int, list[int]], random: np.random.Generator
) -> Plan:
    held: list[dict[int, list[int]]] = [{} for _ in range(config.clients)]
    for c, rows in field.items():
        clients = random.permutation(config.clients)[: config.holders]
        for client, part in zip(
            clients, _shares(config, _limited(config, rows), random), strict=True
        ):
            if part:
                held[client][c] = part
    for client, mine in enumerate(held):  # not all holders in the same step
        held[client] = {c: mine[c] for c in random.permutation(list(mine)).tolist()}
    return _missions(config, held)


def _handover(
    config: ScenarioConfig, field: dict[int, list[int]], random: np.random.Generator
) -> Plan:
    limited = {c: _limited(config, rows) for c, rows in field.items()}
    first = {c: rows[: (len(rows) + 1) // 2] for c, rows in limited.items()}
    later = {c: rows[len(first[c]) :] for c, rows in limited.items()}
    plan = []
    for shift, part in enumerate((first, later)):
        held: list[dict[int, list[int]]] = [{} for _ in range(config.clients)]
        for place, (c, rows) in enumerate(part.items()):
            if rows:
                held[(place + shift) % config.clients][c] = rows
        plan += _missions(config, held)
    return plan


def _random(
    config: ScenarioConfig, field: dict[int, list[int]], random: np.random.Generator
) -> Plan:
    if config.samples_per_class is None:
        raise ConfigError("scenario.schedule=random needs scenario.samples_per_class=NUMBER")
    left = {c: list(rows) for c, rows in field.items()}
    plan: Plan = []
    while config.missions is None or len(plan) < config.missions:
        missions = []
        for client in range(config.clients):
            open_classes = [c for c, rows in left.items() if len(rows) >= config.samples_per_class]
            if len(open_classes) < config.classes_per_mission:
                return plan
            drawn = random.choice(open_classes, config.classes_per_mission, replace=False)
            rows = []
            for c in drawn.tolist():
                rows += left[c][: config.samples_per_class]
                left[c] = left[c][config.samples_per_class :]
            missions.append(Mission(client, tuple(rows)))
        plan.append(missions)
    return plan


SCHEDULES: dict[
    str, Callable[[ScenarioConfig, dict[int, list[int]], np.random.Generator], Plan]
] = {
    "disjoint": _disjoint,
    "overlapping": _overlapping,
    "handover": _handover,
    "random": _random,
}


# -- parts --------------------------------------------------------------------------------------


def _missions(config: ScenarioConfig, held: Sequence[dict[int, list[int]]]) -> Plan:
    """Deal each client its classes, ``classes_per_mission`` at a time."""
    size = config.classes_per_mission
    plan: Plan = []
    for start in range(0, max(map(len, held)), size):
        missions = []
        for client, mine in enumerate(held):
            rows = [row for c in list(mine)[start : start + size] for row in mine[c]]
            if rows:
                missions.append(Mission(client, tuple(rows)))
        plan.append(missions)
    return plan


def _limited(config: ScenarioConfig, rows: list[int]) -> list[int]:
    return rows[: config.samples_per_class]


def _shares(
    config: ScenarioConfig, rows: list[int], random: np.random.Generator
) -> list[list[int]]:
    """Cut a class's rows into one part a holder."""
    if config.skew is None:
        shares = np.full(config.holders, 1 / config.holders)
    else:
        shares = random.dirichlet(np.full(config.holders, config.skew))
    ends = np.rint(np.cumsum(shares) * len(rows)).astype(int)[:-1]
    return [part.tolist() for part in np.split(np.array(rows, dtype=int), ends)]


def _validate(config: ScenarioConfig, n_field: int) -> None:
    if not 1 <= config.holders <= config.clients and config.schedule == "overlapping":
        raise ConfigError(
            f"scenario.holders={config.holders}: expected 1 to {config.clients} clients"
        )
    if n_field < config.classes_per_mission:
        raise ConfigError(
            f"{n_field} field classes are fewer than scenario.classes_per_mission="
            f"{config.classes_per_mission}; lower benchmark.base_classes"
        )
