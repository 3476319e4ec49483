"""From arguments and files to checked configurations.

Sources, the later wins: the defaults of the dataclasses, the recipe of each picked group
(``strategy=napa_vq_released`` reads ``configs/strategy/napa_vq_released.yaml``), the preset
(``experiment=NAME``), the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from protocl.backbones.fit import AUTO
from protocl.config.arguments import Argument, Settings, expand, typed_values
from protocl.config.keys import UnknownKeyError, assign, checked
from protocl.config.partly_known import refuse_partly_known
from protocl.config.presets import (
    GROUPS,
    flatten,
    group_file,
    group_names,
    parse,
    read_mapping,
    require_known,
)
from protocl.config.schema import ExperimentConfig
from protocl.config.unused import refuse_unused
from protocl.errors import ConfigError
from protocl.registry import TRACKERS, Registry, unknown_name

DEFAULTS = {"benchmark": "digits", "backbone": AUTO}
"""Parts that are picked where nothing else says so; a benchmark's file may name its backbone."""

Schema = TypeVar("Schema")


def load(arguments: Sequence[Argument]) -> list[ExperimentConfig]:
    """The configurations of all runs that ``arguments`` ask for; the first key varies slowest.

    Args:
        arguments: ``key=value`` texts as typed on the command line, or keys with their values.

    Raises:
        ConfigError: an unknown key or name, a value that does not fit its key, or a setting of the
            strategy that has no effect.
    """
    values = parse(arguments)
    runs = expand(values)
    configs = compose_all(compose, runs)
    typed = list(typed_values(arguments))
    given = typed if _is_saved(values) else list(values)
    refuse_unused(given, runs, configs, compose, typed=typed)
    return configs


def _is_saved(values: Mapping[str, Any]) -> bool:
    """Whether a preset is the resolved configuration of a run, which has every setting."""
    groups = {key.partition(".")[0] for key in values}
    return "strategy.name" in values and all(
        field.name in groups
        for field in dataclasses.fields(ExperimentConfig)
        if field.name != "tracker"  # which earlier files do not have
    )


def compose(settings: Settings) -> ExperimentConfig:
    """The configuration of one run, every key and value checked against the schema."""
    return build(ExperimentConfig, settings, GROUPS, DEFAULTS)


def compose_all(compose: Callable[[Settings], Schema], runs: Sequence[Settings]) -> list[Schema]:
    """The configuration of each run of a sweep.

    Raises:
        ConfigError: of ``compose``. Of a key that only some of the swept parts have, it names both.
    """
    try:
        return [compose(run) for run in runs]
    except UnknownKeyError as error:
        refuse_partly_known(error.key, runs, compose)
        raise


def build(
    schema: type[Schema],
    settings: Settings,
    groups: Mapping[str, Registry],
    defaults: Mapping[str, str],
) -> Schema:
    """An instance of ``schema``, every key and value checked against it.

    Args:
        schema: a dataclass with ``seed`` and the run's ``name``; the fields named in ``groups`` are
            dataclasses with a ``name`` of their own.
        settings: keys and values as typed.
        groups: fields whose values come from a picked file or part, with the parts' registry.
        defaults: the part of a group that is picked where ``settings`` pick none. In the place of
            ``backbone=auto`` the file of a benchmark may name one that is fit for its samples.

    Raises:
        ConfigError: an unknown key or name, or a value that does not fit its key.
    """
    settings, defaults = dict(settings), dict(defaults)
    if isinstance(settings.get("tracker"), str):
        settings["tracker"] = [settings["tracker"]]  # one needs no brackets
    config: DictConfig = OmegaConf.structured(schema)
    for group, registry in groups.items():
        if not ({group, f"{group}.name"} & settings.keys() or defaults.get(group)):
            _refuse_strange(config, settings, group)
        picked = _pick(group, registry, settings, defaults.get(group))
        if group == "benchmark":
            fit = picked.pop("backbone", AUTO)
            if defaults.get("backbone") == AUTO:
                defaults["backbone"] = fit
        assign(config, {f"{group}.name": picked.pop("name")})
        assign(config, flatten({group: picked}))
    assign(config, settings)
    composed = checked(config)
    assert isinstance(composed, schema)
    _require_folder(composed)
    _require_trackers(composed)
    return composed


def to_yaml(config: Any) -> str:
    """The resolved configuration as YAML; ``experiment=that_file.yaml`` runs it again."""
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)


def _pick(
    group: str, registry: Registry, settings: Settings, default: str | None
) -> dict[str, Any]:
    """Take ``group``, or ``group.name``, which means the same, out of ``settings``.

    Returns:
        The values that this pick gives to the keys of the group, ``name`` among them.
    """
    name_key = f"{group}.name"
    if group in settings and name_key in settings:
        raise ConfigError(f"{name_key}={settings[name_key]}: write {group}={settings[name_key]}")
    picked = settings.pop(group, settings.pop(name_key, default))
    if picked is None:
        raise ConfigError(
            f"{group} is not set: add {group}=NAME with one of "
            f"{', '.join(group_names(group, registry))}"
        )
    name = str(picked)
    require_known(group, name, registry)
    source = group_file(group, name)
    if source is not None:
        return {"name": name, **read_mapping(source.read_bytes(), str(source))}
    # What a family, such as torchvision/NAME, has in common is under its first part.
    family = group_file(group, name.partition("/")[0])
    common = {} if family is None else read_mapping(family.read_bytes(), str(family))
    return {**common, "name": name}


def _refuse_strange(config: DictConfig, settings: Settings, group: str) -> None:
    """Refuse keys of no section where a group is not set: ``strateg=slda`` is told before that."""
    strange = {key: value for key, value in settings.items() if key.split(".")[0] not in config}
    for key in strange:
        if difflib.get_close_matches(key.split(".")[0], [group]):
            raise UnknownKeyError(key, f"unknown key {key}: did you mean {group}?")
    assign(config, strange)


def _require_trackers(config: Any) -> None:
    known = TRACKERS.names()
    for name in config.tracker:
        if name not in known:
            raise unknown_name("tracker", name, known)


def _require_folder(config: Any) -> None:
    parts = Path(config.name).parts
    if not parts or Path(config.name).is_absolute() or ".." in parts:
        raise ConfigError(
            f"name={config.name!r}: expected a folder name below output, such as digits-slda"
        )
