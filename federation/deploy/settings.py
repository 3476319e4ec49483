"""The settings of a simulation as those of a Flower app, and back.

Flower's configuration holds texts, numbers and truth values. What else a setting may be (lists,
``null``, infinite numbers) is written as the text that one would type on the command line, and read
by the same rule.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass, replace
from typing import Any

from omegaconf import MISSING

from protocl.config.arguments import Settings, typed_values
from protocl.config.presets import flatten
from protocl.errors import ConfigError
from protocl.federation.config import FederateConfig, MethodConfig
from protocl.federation.config.compose import compose

SECTIONS = ("method", "benchmark", "backbone", "partition", "limits")
"""Sections of a run's settings that go into the app, besides ``seed`` and those of its rounds."""

ROUNDS = {
    "rounds": "federation.rounds",
    "participation": "federation.participation",
    "min-clients": "federation.min_clients",
    "evaluate": "federation.evaluate",
    "deadline": "federation.deadline",
}
"""Keys of the run's configuration, and what the command calls them."""

_PATHS = ("benchmark.path", "benchmark.root", "backbone.checkpoint", "partition.path")
_OWN = ("benchmark", "backbone", "partition")
"""Sections of which a node may have settings of its own, such as where its data lie."""


def stated(config: FederateConfig) -> dict[str, dict[str, Any]]:
    """Section -> settings by dotted key: all of the method, of the others what was chosen.

    Raises:
        ConfigError: one is a path of this machine, which others do not have.
    """
    names = {key: getattr(config, key).name for key in ("method", "benchmark", "backbone")}
    usual = flatten(asdict(compose(names)))
    found: dict[str, dict[str, Any]] = {"method": _of_method(config.method)}
    for section in SECTIONS[1:]:
        values = flatten(asdict(getattr(config, section)))
        found[section] = {
            key: value
            for key, value in values.items()
            if key == "name" or value != usual.get(f"{section}.{key}", MISSING)
        }
    for path in _PATHS:
        section, _, key = path.partition(".")
        if str(found[section].get(key) or "").startswith("/"):
            raise ConfigError(
                f"{path}={found[section][key]}: other machines do not have this folder; give a "
                "path relative to the folder of the federation, which each machine has"
            )
    return found


def _of_method(method: MethodConfig) -> dict[str, Any]:
    """All settings; of a section of its own its name and what differs from its defaults."""
    values = asdict(method)
    for key in [key for key, section in vars(method).items() if is_dataclass(section)]:
        inner, defaults = values.pop(key), asdict(type(getattr(method, key))())
        differ = {k: v for k, v in inner.items() if k == "name" or v != defaults[k]}
        values |= {f"{key}.{name}": value for name, value in differ.items()}
    return values


def to_toml(values: Mapping[str, Any]) -> str:
    """Lines of a table."""
    # JSON's way of writing texts, numbers and truth values is TOML's as well.
    return "\n".join(f"{key} = {json.dumps(_plain(value))}" for key, value in values.items())


def _plain(value: Any) -> str | int | float | bool:
    """A value as Flower holds it: itself, or the text that would be typed for it."""
    if isinstance(value, str):
        return value if _read(value) == value else json.dumps(value)
    if isinstance(value, int | float) and math.isfinite(value):
        return value
    if isinstance(value, float):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return "null" if value is None else json.dumps(value)


def _read(text: str) -> Any:
    """The value that a text means on the command line; itself where it would be a sweep."""
    try:
        (value,) = typed_values([f"value={text}"])["value"]
    except (ValueError, ConfigError):
        return text
    return value


def read_config(run_config: Mapping[str, Any]) -> FederateConfig:
    """The run's configuration in the schema of the command, every value checked.

    Raises:
        ConfigError: an unknown key or name, or a value that does not fit.
    """
    settings: Settings = {
        name: run_config[key] for key, name in ROUNDS.items() if key in run_config
    }
    chosen = ("seed", *(f"{section}." for section in SECTIONS))
    settings |= {
        key: _read(value) if isinstance(value, str) else value
        for key, value in run_config.items()
        if key.startswith(chosen)
    }
    # As many as must be there are asked at least; how many there will be nobody knows.
    settings["federation.clients"] = settings.get("federation.min_clients", 1)
    if "method.name" not in settings:
        raise ConfigError("the run's configuration has no method.name, such as 'prototypes'")
    return compose(settings)


def of_task(config: FederateConfig, run_config: Mapping[str, Any]) -> FederateConfig:
    """The configuration by which data are dealt: so many clients, and rounds in which they arrive.

    Both stay the same while a run goes on, however many nodes there are and rounds are added.
    """
    federation = replace(
        config.federation,
        clients=int(run_config.get("clients", config.federation.clients)),
        rounds=int(run_config.get("parts", config.federation.rounds)),
    )
    return replace(config, federation=federation)


def own_settings(node_config: Mapping[str, Any]) -> dict[str, Any]:
    """What a node's configuration says in place of the run's: ``benchmark-path='/data/photos'``."""
    return {
        key.replace("-", ".", 1): value
        for key, value in node_config.items()
        if key.partition("-")[0] in _OWN and key != "partition-id"
    }
