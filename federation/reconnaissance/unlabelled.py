"""Which samples of a scenario arrive without their labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from protocl.errors import ConfigError
from protocl.federation.reconnaissance.config import ScenarioConfig
from protocl.federation.reconnaissance.scenario import Mission, Step


def hide_labels(
    config: ScenarioConfig, steps: Sequence[Step], labels: Sequence[int], seed: int
) -> tuple[Step, ...]:
    """Take the labels from a share of each class of each mission.

    Args:
        config: ``unlabelled`` is read.
        steps: as drawn.
        labels: class of each row.
        seed: of a generator of its own, so that what is drawn stays as it is without it.
    """
    if not config.unlabelled:
        return tuple(steps)
    random = np.random.default_rng([seed, 1])
    return tuple(
        replace(step, missions=tuple(_hidden(config, m, labels, random) for m in step.missions))
        for step in steps
    )


def _hidden(
    config: ScenarioConfig, mission: Mission, labels: Sequence[int], random: np.random.Generator
) -> Mission:
    by_class: dict[int, list[int]] = defaultdict(list)
    for row in mission.rows:
        by_class[labels[row]].append(row)
    shown: list[int] = []
    hidden: list[int] = []
    for rows in by_class.values():
        cut = len(rows) - round(config.unlabelled * len(rows))
        order = random.permutation(rows).tolist()
        shown, hidden = shown + sorted(order[:cut]), hidden + order[cut:]
    mixed = random.permutation(np.array(hidden, dtype=np.int64)).tolist()
    return replace(mission, rows=tuple(shown), unlabelled=tuple(mixed))


def revisit(
    config: ScenarioConfig,
    base: Mapping[int, Sequence[int]],
    steps: Sequence[Step],
    seed: int,
) -> tuple[list[int], tuple[Step, ...]]:
    """Keep samples of base classes for the field, where they come without labels.

    Args:
        config: ``revisited`` and ``base_samples`` are read, samples of each base class.
        base: base class -> rows of its training samples.
        steps: as drawn.
        seed: of a generator of its own.

    Returns:
        Rows that are taught from the start, and the steps in whose missions the others are dealt.

    Raises:
        ConfigError: a base class has no sample left.
    """
    kept = config.revisited
    if any(len(rows) <= kept for rows in base.values()):
        raise ConfigError(
            f"scenario.revisited={kept} leaves a base class without a sample; lower it"
        )
    taught = [r for rows in base.values() for r in rows[: len(rows) - kept][: config.base_samples]]
    if not kept:
        return taught, tuple(steps)
    random = np.random.default_rng([seed, 2])
    strange = random.permutation([row for rows in base.values() for row in rows[-kept:]])
    missions = [(s, n) for s, step in enumerate(steps) for n in range(len(step.missions))]
    dealt = dict(zip(missions, np.array_split(strange, max(1, len(missions))), strict=True))
    return taught, tuple(
        replace(
            step,
            missions=tuple(
                replace(m, unlabelled=m.unlabelled + tuple(dealt[s, n].tolist()))
                for n, m in enumerate(step.missions)
            ),
        )
        for s, step in enumerate(steps)
    )
