"""Files of settings: named recipes of a part (``configs/strategy/NAME.yaml``) and whole presets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from protocl.config.arguments import Argument, Settings, expand, typed_values
from protocl.errors import ConfigError
from protocl.registry import BACKBONES, BENCHMARKS, STRATEGIES, Registry, unknown_name

GROUPS: dict[str, Registry] = {
    "benchmark": BENCHMARKS,
    "backbone": BACKBONES,
    "strategy": STRATEGIES,
}


def parse(arguments: Sequence[Argument]) -> dict[str, list[Any]]:
    """The values of each key: those of the preset, overruled by those of ``arguments``.

    Picking a part that the preset does not pick drops what the preset says about its keys.
    """
    typed = typed_values(arguments)
    preset = typed.pop("experiment", None)
    if preset is None:
        return typed
    return {**_standing(_read_preset("experiment", str(preset[0])), typed), **typed}


def settle(
    arguments: Sequence[Argument], preset: str, full: Callable[[str], str] = str
) -> list[Settings]:
    """Keys and values of all runs that ``arguments`` ask for; a comma makes a sweep.

    Args:
        arguments: ``key=value`` texts, or keys with their values.
        preset: the key that names a preset: a file of the group of that name, or the user's own.
        full: the whole name of a key that may be typed short.

    Raises:
        ConfigError: an argument or the preset is not readable, or the preset does not exist.
    """
    typed = {full(key): values for key, values in parse(arguments).items()}
    picked = typed.pop(preset, None)
    if picked is not None:
        if len(picked) > 1:
            raise ConfigError(f"'{preset}' takes one value; it cannot be swept")
        content = _read_preset(preset, str(picked[0]))
        given = {full(key): values for key, values in content.items()}
        typed = {**_standing(given, typed), **typed}
    return expand(typed)


def _read_preset(group: str, name: str) -> dict[str, list[Any]]:
    """A preset as keys with their values; ``sweep:`` holds the keys with more than one."""
    content = _read_group(group, name)
    sweep = content.pop("sweep", None) or {}
    if not isinstance(sweep, dict):
        raise ConfigError(f"{name}: sweep is {sweep!r}; expected keys with a list of values each")
    values = {key: [value] for key, value in flatten(content).items()}
    for key, choices in flatten(sweep).items():
        if not isinstance(choices, list) or not choices:
            raise ConfigError(f"{name}: sweep.{key} is {choices!r}; expected a list of values")
        values[key] = choices
    return values


def _standing(
    preset: Mapping[str, list[Any]], typed: Mapping[str, list[Any]]
) -> dict[str, list[Any]]:
    """What of a preset is left beside what was typed."""

    def repicked(section: str) -> bool:
        """Whether a part was picked that is not the preset's."""
        picks = preset.get(section) or preset.get(f"{section}.name") or []
        asked = typed.get(section) or typed.get(f"{section}.name") or []
        return not all(pick in picks for pick in asked)

    def stands(key: str) -> bool:
        words = key.split(".")
        parts = [".".join(words[: depth + 1]) for depth in range(len(words))]
        if key in typed or (words[-1] == "name" and key.removesuffix(".name") in typed):
            return False
        return not any(map(repicked, parts[:-1]))

    return {key: values for key, values in preset.items() if stands(key)}


def group_names(group: str, registry: Registry | None = None) -> list[str]:
    """Every name that ``group=NAME`` accepts: shipped YAML files and registered parts."""
    registry = registry or GROUPS.get(group)
    folder = files("protocl.configs") / group
    shipped = {
        entry.name.removesuffix(".yaml")
        for entry in (folder.iterdir() if folder.is_dir() else ())
        if entry.name.endswith(".yaml")
    }
    registered = registry.names() if registry else []
    return sorted(shipped.union(registered))


def group_file(group: str, name: str) -> Traversable | None:
    """The YAML file of ``group=name``: a path of the user's, or a file that protocl ships."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(f"{group}={name}: there is no such file")
        return path
    shipped = files("protocl.configs") / group / f"{name}.yaml"
    return shipped if shipped.is_file() else None


def require_known(group: str, name: str, registry: Registry) -> None:
    """Refuse a ``group=NAME`` that is neither a file nor a registered part.

    Raises:
        ConfigError: it names the nearest name that exists.
    """
    # A family such as timm/NAME is registered under its first part.
    if group_file(group, name) is None and name.partition("/")[0] not in registry.names():
        raise unknown_name(group, name, group_names(group, registry))


def require_readable(arguments: Sequence[str]) -> None:
    """Refuse arguments whose form, preset or names of parts are wrong, without importing any part.

    So that whoever mistypes is told at once: parts import torch, which takes seconds.

    Raises:
        ConfigError: as when a configuration is composed.
    """
    values = parse(arguments)
    for group, registry in GROUPS.items():
        for name in values.get(group) or values.get(f"{group}.name") or []:
            require_known(group, str(name), registry)


def _read_group(group: str, name: str) -> Settings:
    source = group_file(group, name)
    if source is None:
        raise unknown_name(group, name, group_names(group))
    return read_mapping(source.read_bytes(), str(source))


def flatten(content: Mapping[str, Any], prefix: str = "") -> Settings:
    """``{"strategy": {"loss": {"k": 1}}}`` as ``{"strategy.loss.k": 1}``."""
    flat: Settings = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_mapping(text: bytes, source: str) -> Settings:
    """The ``key: value`` lines of a YAML text; ``source`` names it in errors."""
    try:
        mapping = OmegaConf.to_container(OmegaConf.create(text.decode()))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"{source} is not readable as YAML: {error}") from error
    if not isinstance(mapping, dict):
        raise ConfigError(f"{source} holds {type(mapping).__name__}; expected 'key: value' lines")
    return {str(key): value for key, value in mapping.items()}
