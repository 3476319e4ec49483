"""Refuse settings that have no effect on any of the runs that they are given for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from operator import attrgetter
from typing import Any

from protocl.config.schema import ExperimentConfig, StrategyConfig
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
        if not concerned or any(why_unused(configs[i].strategy, name) is None for i in concerned):
            continue
        for i in concerned:
            rest = {k: value for k, value in runs[i].items() if k != key}
            value_of = attrgetter(name)
            if key in typed or value_of(compose(rest).strategy) != value_of(configs[i].strategy):
                raise ConfigError(_refusal(key, runs[i][key], configs[i].strategy))


def why_unused(strategy: StrategyConfig, name: str) -> str | None:
    """Why a setting, or the section that it is in, has no effect; None where it has one."""
    unused = strategy.unused
    words = name.split(".")
    sections = [".".join(words[: depth + 1]) for depth in range(len(words))]
    return next((unused[section] for section in sections if section in unused), None)


def settings_of(settings: Any, prefix: str = "") -> Iterator[str]:
    """The names of all settings of a dataclass, those in its sections with a dot."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from settings_of(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _refusal(key: str, value: Any, strategy: StrategyConfig) -> str:
    used = [name for name in settings_of(strategy) if why_unused(strategy, name) is None]
    return (
        f"{key}={value} has no effect: strategy '{strategy.name}' does not use it, for "
        f"{why_unused(strategy, key.removeprefix(_GROUP))}; leave it out. In effect are strategy."
        f"{', '.join(name for name in used if name != 'name')}"
    )
