"""Refuse settings that have no effect on any of the runs that they are given for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from protocl.config.schema import ExperimentConfig
from protocl.errors import ConfigError

_GROUP = "strategy."


def refuse_unused(
    given: Sequence[str],
    runs: Sequence[Mapping[str, Any]],
    configs: Sequence[ExperimentConfig],
    compose: Callable[[dict[str, Any]], ExperimentConfig],
    *,
    typed: Sequence[str],
) -> None:
    """Refuse a setting of the strategy that none of the runs uses.

    In a sweep over strategies a setting that one of them uses is no mistake for the others.

    Args:
        given: keys that the user set, on the command line or in a preset.
        runs: all settings of each run.
        configs: what each run is composed to.
        compose: from the settings of a run to its configuration.
        typed: those of the command line, which are refused with the value of the default as well.

    Raises:
        ConfigError: it names the setting, the reason, and what the strategy does use.
    """
    for key in given:
        name = key.removeprefix(_GROUP)
        concerned = [i for i, run in enumerate(runs) if key.startswith(_GROUP) and key in run]
        if not concerned or any(name not in configs[i].strategy.unused for i in concerned):
            continue
        for i in concerned:
            rest = {k: value for k, value in runs[i].items() if k != key}
            value = getattr(configs[i].strategy, name)
            if key in typed or getattr(compose(rest).strategy, name) != value:
                raise ConfigError(_refusal(key, value, configs[i]))


def _refusal(key: str, value: Any, config: ExperimentConfig) -> str:
    strategy = config.strategy
    unused = strategy.unused
    used = [field.name for field in dataclasses.fields(strategy) if field.name not in unused]
    return (
        f"{key}={value} has no effect: strategy '{strategy.name}' does not use it, for "
        f"{unused[key.removeprefix(_GROUP)]}; leave it out. In effect are strategy."
        f"{', '.join(name for name in used if name != 'name')}"
    )
