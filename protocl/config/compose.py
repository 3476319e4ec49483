"""From ``key=value`` arguments and YAML files to checked experiment configurations.

Three sources, the later wins: the YAML file of each picked group (``strategy=slda`` reads
``configs/strategy/slda.yaml``), the preset (``experiment=NAME``), the command line. A comma
outside brackets and quotes makes a sweep.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections.abc import Callable, Container, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from protocl.config.schema import ExperimentConfig, StrategyConfig
from protocl.config.unused import refuse_unused
from protocl.config.validation import (
    AT_LEAST_0,
    AT_LEAST_1,
    BELOW_1,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    require,
)
from protocl.errors import ConfigError
from protocl.registry import BACKBONES, BENCHMARKS, STRATEGIES, Registry, unknown_name

GROUPS: dict[str, Registry] = {
    "benchmark": BENCHMARKS,
    "backbone": BACKBONES,
    "strategy": STRATEGIES,
}
_NOT_SWEPT = {"experiment", "jobs", "resume", "output", "cache"}
DEFAULTS = {"benchmark": "digits", "backbone": "identity"}
"""Parts that are picked where nothing else says so; a benchmark's file may name another backbone
than the raw samples."""

Schema = TypeVar("Schema")
Settings = dict[str, Any]
"""Keys as typed on the command line (``strategy``, ``strategy.lr``), each with one value."""


def load(arguments: Sequence[str]) -> list[ExperimentConfig]:
    """The configurations of all runs that ``arguments`` ask for; the first key varies slowest.

    Args:
        arguments: ``key=value`` texts as typed on the command line.

    Raises:
        ConfigError: an unknown key or name, a value that does not fit its key, or a setting of the
            strategy that has no effect.
    """
    values = parse(arguments)
    runs = expand(values)
    configs = [compose(settings) for settings in runs]
    typed = [argument.partition("=")[0] for argument in arguments]
    given = typed if _is_saved(values) else list(values)
    refuse_unused(given, runs, configs, compose, typed=typed)
    return configs


def _is_saved(values: Mapping[str, Any]) -> bool:
    """Whether a preset is the resolved configuration of a run, which has every setting."""
    groups = {key.partition(".")[0] for key in values}
    return "strategy.name" in values and all(
        field.name in groups for field in dataclasses.fields(ExperimentConfig)
    )


def parse(arguments: Sequence[str]) -> dict[str, list[Any]]:
    """The values of each key: those of the preset, overruled by those of ``arguments``.

    Picking a part that the preset does not pick drops what the preset says about its keys.
    """
    typed: dict[str, list[Any]] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{argument}' is not of the form key=value, such as seed=1")
        typed[key] = [_value(key, part) for part in split_commas(text)]
        if key in _NOT_SWEPT and len(typed[key]) > 1:
            raise ConfigError(f"{argument}: '{key}' takes one value; it cannot be swept")
    preset = typed.pop("experiment", None)
    if preset is None:
        return typed
    return {**_standing(_read_preset(str(preset[0])), typed), **typed}


def _standing(
    preset: Mapping[str, list[Any]], typed: Mapping[str, list[Any]]
) -> dict[str, list[Any]]:
    """What of a preset is left beside what was typed."""

    def repicked(key: str) -> bool:
        """Whether a part was picked that is not the preset's."""
        picks = preset.get(key) or preset.get(f"{key}.name") or []
        return not all(pick in picks for pick in typed.get(key, []))

    def stands(key: str) -> bool:
        group, options_of = key.partition(".")[0], key.removesuffix("_options")
        if key in typed or (key == f"{group}.name" and group in typed):
            return False
        return not repicked(group) and (options_of == key or not repicked(options_of))

    return {key: values for key, values in preset.items() if stands(key)}


def expand(values: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """Every combination of the values of all keys."""
    return [
        dict(zip(values, combination, strict=True))
        for combination in itertools.product(*values.values())
    ]


def split_commas(text: str) -> list[str]:
    """Split at commas that stand outside brackets, braces and quotes.

    >>> split_commas("1,2,[3,4],'a,b'")
    ['1', '2', '[3,4]', "'a,b'"]
    """
    parts = [""]
    depth, quote = 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def compose(settings: Settings) -> ExperimentConfig:
    """The configuration of one run, every key and value checked against the schema."""
    parts = {"strategy": STRATEGIES.subclass_of(StrategyConfig)}
    composed = build(ExperimentConfig, settings, GROUPS, parts, DEFAULTS)
    _validate(composed)
    return composed


def build(
    schema: type[Schema],
    settings: Settings,
    groups: Mapping[str, Registry],
    subclasses: Mapping[str, Callable[[str], type]],
    defaults: Mapping[str, str],
) -> Schema:
    """An instance of ``schema``, every key and value checked against it.

    Args:
        schema: a dataclass with ``seed`` and the run's ``name``; the fields named in ``groups`` are
            dataclasses with a ``name`` of their own.
        settings: keys and values as typed.
        groups: fields whose values come from a picked file or part, with the parts' registry.
        subclasses: for a group whose parts bring fields of their own: name -> its dataclass.
        defaults: the part of a group that is picked where ``settings`` pick none. In the place of
            ``backbone=identity`` the file of a benchmark may name one that is fit for its samples.

    Raises:
        ConfigError: an unknown key or name, or a value that does not fit its key.
    """
    settings = dict(settings)
    config: DictConfig = OmegaConf.structured(schema)
    schemas: dict[str, type] = {"": schema}
    for field in dataclasses.fields(schema):  # type: ignore[arg-type]
        kind = OmegaConf.get_type(config, field.name)
        if dataclasses.is_dataclass(kind):
            schemas[field.name] = kind
    defaults = dict(defaults)
    for group, registry in groups.items():
        picked = _pick(group, registry, settings, defaults.get(group))
        if group == "benchmark":
            fit = picked.pop("backbone", "identity")
            if defaults.get("backbone") == "identity":
                defaults["backbone"] = fit
        if group in subclasses:
            # The base class has no fields of the part's own; its subclass takes its place.
            config[group] = OmegaConf.structured(subclasses[group](picked["name"]))
        schemas[group] = _schema_of(config, group)
        for key, value in picked.items():
            _assign(config, schemas, f"{group}.{key}", value)
    for key, value in settings.items():
        _assign(config, schemas, key, value)
    try:
        composed = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration does not resolve: {_first_line(error)}") from error
    assert isinstance(composed, schema)
    _require_seed_and_name(composed)
    return composed


def to_yaml(config: Any) -> str:
    """The resolved configuration as YAML; ``experiment=that_file.yaml`` runs it again."""
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)


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
    source = group_file(group, name)
    if source is None:
        # A family such as timm/NAME is registered under its first part.
        if name.partition("/")[0] not in registry.names():
            raise unknown_name(group, name, group_names(group, registry))
        return {"name": name}
    return {"name": name, **read_mapping(source.read_bytes(), str(source))}


def _schema_of(config: DictConfig, group: str) -> type:
    schema = OmegaConf.get_type(config, group)
    assert schema is not None
    return schema


def group_file(group: str, name: str) -> Traversable | None:
    """The YAML file of ``group=name``: a path of the user's, or a file that protocl ships."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(f"{group}={name}: there is no such file")
        return path
    shipped = files("protocl.configs") / group / f"{name}.yaml"
    return shipped if shipped.is_file() else None


def _read_preset(name: str) -> dict[str, list[Any]]:
    """A preset as keys with their values; ``sweep:`` holds the keys with more than one."""
    source = group_file("experiment", name)
    if source is None:
        raise unknown_name("experiment", name, group_names("experiment"))
    content = read_mapping(source.read_bytes(), str(source))
    sweep = content.pop("sweep", None) or {}
    values = {key: [value] for key, value in flatten(content).items()}
    for key, choices in sweep.items():
        if not isinstance(choices, list) or not choices:
            raise ConfigError(f"{source}: sweep.{key} is {choices!r}; expected a list of values")
        values[key] = choices
    return values


def settle(
    arguments: Sequence[str],
    preset: str,
    sections: Container[str],
    full: Callable[[str], str] = str,
) -> list[Settings]:
    """Keys and values of all runs that ``arguments`` ask for; a comma makes a sweep.

    Args:
        arguments: ``key=value`` texts.
        preset: the key that names a preset: a file of the group of that name, or the user's own.
        sections: keys whose nested values a preset gives as ``key.inner``.
        full: the whole name of a key that may be typed short.

    Raises:
        ConfigError: an argument or the preset is not readable, or the preset does not exist.
    """
    typed = {full(key): values for key, values in parse(arguments).items()}
    picked = typed.pop(preset, None)
    if picked is not None:
        if len(picked) > 1:
            raise ConfigError(f"'{preset}' takes one value; it cannot be swept")
        source = group_file(preset, str(picked[0]))
        if source is None:
            raise unknown_name(preset, str(picked[0]), group_names(preset))
        content = flatten(read_mapping(source.read_bytes(), str(source)), sections)
        given = {full(key): [value] for key, value in content.items()}
        typed = {**_standing(given, typed), **typed}
    return expand(typed)


def flatten(content: Mapping[str, Any], groups: Container[str] = GROUPS) -> Settings:
    """``{"strategy": {"lr": 1}}`` as ``{"strategy.lr": 1}``."""
    flat: Settings = {}
    for key, value in content.items():
        if key in groups and isinstance(value, dict):
            flat.update({f"{key}.{inner}": given for inner, given in value.items()})
        else:
            flat[key] = value
    return flat


def read_mapping(text: bytes, source: str) -> dict[str, Any]:
    """The ``key: value`` lines of a YAML text; ``source`` names it in errors."""
    try:
        mapping = OmegaConf.to_container(OmegaConf.create(text.decode()))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"{source} is not readable as YAML: {error}") from error
    if not isinstance(mapping, dict):
        raise ConfigError(f"{source} holds {type(mapping).__name__}; expected 'key: value' lines")
    return {str(key): value for key, value in mapping.items()}


def _value(key: str, text: str) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[call-overload,index]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{key}={text}: the value is not readable: {error}") from error


def _assign(config: DictConfig, schemas: Mapping[str, type], key: str, value: Any) -> None:
    group, _, name = key.rpartition(".")
    fields = dataclasses.fields(schemas[group]) if group in schemas else ()
    expected = next((_annotation(field.type) for field in fields if field.name == name), None)
    if expected is None:
        raise ConfigError(_unknown_key(key, schemas))
    if isinstance(value, int) and not isinstance(value, bool) and _float_only(expected):
        value = float(value)
    try:
        OmegaConf.update(config, key, value)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}={value}: expected {expected}") from error


def _annotation(kind: Any) -> str:
    """A field's type as it is written in the source."""
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def _float_only(annotation: str) -> bool:
    """OmegaConf refuses ``1`` for ``float | str``, though it takes it for ``float``."""
    kinds = {kind.strip() for kind in annotation.split("|")}
    return "float" in kinds and "int" not in kinds


def _unknown_key(key: str, schemas: Mapping[str, type]) -> str:
    known = [
        f"{group}.{field.name}" if group else field.name
        for group, schema in schemas.items()
        for field in dataclasses.fields(schema)
    ]
    last = key.rpartition(".")[2]
    near = [name for name in known if name.rpartition(".")[2] == last]
    near += difflib.get_close_matches(key, known, n=1)
    near += [name for name in known if name.endswith("." + (_closest(last, known) or " "))]
    if near:
        return f"unknown key {key}: did you mean {near[0]}?"
    return f"unknown key {key}: choose from {', '.join(known)}"


def _closest(last: str, known: Sequence[str]) -> str | None:
    matches = difflib.get_close_matches(last, [name.rpartition(".")[2] for name in known], n=1)
    return matches[0] if matches else None


def _require_seed_and_name(config: Any) -> None:
    require(config, "", seed=SEED, jobs=AT_LEAST_1)
    parts = Path(config.name).parts
    if not parts or Path(config.name).is_absolute() or ".." in parts:
        raise ConfigError(
            f"name={config.name!r}: expected a folder name below output, such as digits-slda"
        )


def _validate(config: ExperimentConfig) -> None:
    # Each strategy checks its own settings when it is built.
    require(
        config.strategy, "strategy.",
        train_epochs=AT_LEAST_0, train_mb_size=AT_LEAST_1, eval_mb_size=AT_LEAST_1,
        lr=POSITIVE, momentum=BELOW_1, weight_decay=NOT_NEGATIVE,
    )  # fmt: skip


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
