"""From ``key=value`` arguments and a YAML preset to checked federated configurations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from protocl.backbones.fit import AUTO
from protocl.config.arguments import Argument, Settings
from protocl.config.compose import build, compose_all
from protocl.config.presets import settle
from protocl.errors import ConfigError
from protocl.federation.client.partition import GIVEN
from protocl.federation.config.schema import (
    METHODS,
    FederateConfig,
    FederationConfig,
    MethodConfig,
)
from protocl.registry import BACKBONES, BENCHMARKS

_GROUPS = {"benchmark": BENCHMARKS, "backbone": BACKBONES, "method": METHODS}
_DEFAULTS = {"benchmark": "digits", "backbone": AUTO, "method": "prototypes"}
_SHORT = {field.name for field in fields(FederationConfig)}


def load(arguments: Sequence[Argument]) -> list[FederateConfig]:
    """The configurations of all runs that ``arguments`` ask for; a comma makes a sweep.

    Args:
        arguments: ``key=value`` texts. ``federation=NAME`` reads a preset, or the ``config.yaml``
            of an earlier run.

    Raises:
        ConfigError: an unknown key or name, or a value that does not fit its key.
    """
    return compose_all(compose, settle_short(arguments))


def settle_short(arguments: Sequence[Argument]) -> list[Settings]:
    """Keys and values of all runs; those of ``federation.`` may be typed without it."""
    return settle(arguments, "federation", _full)


def compose(settings: Settings) -> FederateConfig:
    """The configuration of one run, every key and value checked against the schema."""
    config = build(FederateConfig, settings, _GROUPS, _DEFAULTS)
    _deal_by_column(config, settings)
    _follow_stream(config, settings)
    _validate(config)
    return config


def require_deployable(method: MethodConfig) -> None:
    """Refuse a method that a deployment cannot take up again.

    Raises:
        ConfigError: the method is one.
    """
    if method.deployable:
        return
    able = [name for name in METHODS.names() if MethodConfig.named(name).deployable]
    raise ConfigError(
        f"method={method.name} runs in simulation only; a deployment can have {', '.join(able)}"
    )


def _full(key: str) -> str:
    return f"federation.{key}" if key in _SHORT else key


def _deal_by_column(config: FederateConfig, settings: Settings) -> None:
    """A column of clients says who holds what, unless a partition is picked."""
    picked = "partition" in settings or "partition.name" in settings
    if config.benchmark.columns.client is not None and not picked:
        config.partition.name = GIVEN
    if config.partition.name == GIVEN and "federation.clients" not in settings:
        config.federation.clients = 0


def _follow_stream(config: FederateConfig, settings: Settings) -> None:
    """A stream lasts as many rounds as it has experiences, unless it is said how many.

    Of ``benchmark.protocol`` and ``increment`` the data tell how many that are; they are said.
    """
    benchmark, section = config.benchmark, settings.get("federation")
    rounds_given = "federation.rounds" in settings or "rounds" in (section or {})
    equal_parts = benchmark.protocol is None and benchmark.increment is None
    if config.partition.growth == "stream" and equal_parts and not rounds_given:
        config.federation.rounds = benchmark.n_experiences or config.federation.rounds


def _validate(config: FederateConfig) -> None:
    federation = config.federation
    if federation.clients < 1 and config.partition.name != GIVEN:
        raise ConfigError(f"clients={federation.clients}: expected at least 1")
    if 0 < federation.clients < federation.min_clients:
        raise ConfigError(
            f"min_clients={federation.min_clients}: no round could begin with "
            f"clients={federation.clients}; expected at most as many"
        )
    if federation.rounds > 1 and not federation.remember:
        raise ConfigError(
            f"remember=false: clients need their state for rounds={federation.rounds}"
        )
    if federation.engine == "ray" and config.jobs > 1:
        raise ConfigError(
            f"jobs={config.jobs}: engine=ray has every core at work in each run; leave jobs out"
        )
    if federation.engine == "ray" and federation.edges:
        raise ConfigError(f"edges={federation.edges} are simulated with engine=in_process only")
    if federation.engine == "ray" and (federation.lost or federation.late):
        raise ConfigError("lost and late are simulated with engine=in_process only")
