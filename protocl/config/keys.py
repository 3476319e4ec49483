"""Values put under their keys, at any depth, and checked against the schema there."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from protocl.config.sections import Part
from protocl.config.validation import hints_of, in_words, members_of, require_declared
from protocl.errors import ConfigError


class UnknownKeyError(ConfigError):
    """A key that the schema does not have, or not with the parts that are picked.

    Args:
        key: in full.
        reason: what is wrong with it.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key


def assign(config: DictConfig, values: Mapping[str, Any]) -> None:
    """Put ``values`` into ``config``, in which every section is a dataclass.

    A word in the place of a section is its first setting: ``drift=sdc`` is ``drift.method=sdc``. A
    section whose class has ``named`` gives way to that of the name it is given.

    Raises:
        ConfigError: an unknown key, or a value that does not fit its key.
    """
    leaves = [leaf for key, value in values.items() for leaf in _leaves(config, key, value)]
    # A name comes first, for it decides which other settings there are.
    leaves.sort(key=lambda leaf: (leaf[0].count("."), not leaf[0].endswith(".name")))
    unknown: list[UnknownKeyError] = []
    wrong: list[ConfigError] = []
    for key, value in leaves:
        try:
            _assign(config, key, value)
        except UnknownKeyError as error:
            unknown.append(error)
        except ConfigError as error:
            if key.endswith(".name"):
                raise
            wrong.append(error)
    if len(unknown) > 1:
        raise UnknownKeyError(unknown[0].key, "; ".join(map(str, unknown)))
    for refused in (*unknown, *wrong):
        raise refused


def checked(config: DictConfig) -> Any:
    """The dataclass that ``config`` describes, every value in its range.

    Raises:
        ConfigError: it names the key of the value that is not.
    """
    for key, section in _sections(config):
        _instance(section, key)
    return _instance(config, "")


def _instance(section: DictConfig, key: str) -> Any:
    try:
        made = OmegaConf.to_object(section)
        require_declared(made)
        if isinstance(made, Part):
            made.check()
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"the configuration does not resolve: {first}") from error
    except ValueError as error:
        name = str(error).partition("=")[0]
        dot = "." if name.isidentifier() else ": "
        raise ConfigError(f"{key}{dot}{error}" if key else str(error)) from error
    return made


def _leaves(config: DictConfig, key: str, value: Any) -> Iterator[tuple[str, Any]]:
    schema = _schema(config, key)
    if schema is None:
        yield key, value
    elif isinstance(value, dict):
        for inner, given in value.items():
            yield from _leaves(config, f"{key}.{inner}", given)
    else:
        first, hint = next(iter(hints_of(schema).items()))
        if not _is_word_of(hint, value):
            _refuse_absent(config, key, value)
        if not _takes_words(hint):
            known = ", ".join(f"{key}.{name}" for name in hints_of(schema))
            raise ConfigError(f"{key}={value}: expected settings of its own: {known}")
        yield f"{key}.{first}", value


def _takes_words(hint: Any) -> bool:
    return any(
        isinstance(choice, str) or choice is str
        for member in members_of(hint)
        for choice in get_args(member) or (member,)
    )


def _is_word_of(hint: Any, value: Any) -> bool:
    """Whether a value is one of the words that a setting accepts; a number may always be meant."""
    words = [word for member in members_of(hint) for word in get_args(member) or (member,)]
    return not isinstance(value, str) or str in words or value in words


def _refuse_absent(config: DictConfig, key: str, value: Any) -> None:
    """Refuse a choice that the part of a group does not offer, if it says what to type instead."""
    group, _, rest = key.removesuffix(".name").partition(".")
    refusal = getattr(_schema(config, group), "refusal", None)
    said = None if refusal is None else refusal(rest, value)
    if said is not None:
        name = OmegaConf.select(config, f"{group}.name")
        raise UnknownKeyError(key, f"{key}={value}: {group} '{name}' {said}")


def _assign(config: DictConfig, key: str, value: Any) -> None:
    parent, _, name = key.rpartition(".")
    section = _section(config, parent)
    schema = None if section is None else OmegaConf.get_type(section)
    hint = Any if schema is dict else hints_of(schema).get(name) if is_dataclass(schema) else None
    if section is None or hint is None:
        _refuse_absent(config, key, value)
        raise UnknownKeyError(key, _unknown_key(key, list(known_keys(config))))
    kinds = members_of(hint)
    if type(value) is int and float in kinds and int not in kinds:
        value = float(value)  # OmegaConf takes 1 for float, and refuses it for float | str
    before = OmegaConf.select(section, name) if name == "name" else value
    try:
        with read_write(section):  # a frozen dataclass is a read-only section
            OmegaConf.update(config, key, value)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}={value}: expected {in_words(hint)}") from error
    named = getattr(schema, "named", None)
    if named is not None and value != before:
        OmegaConf.update(config, parent, OmegaConf.structured(named(value)), merge=False)


def _schema(config: DictConfig, key: str) -> type | None:
    """The dataclass of the section at ``key``, or None where there is no section."""
    parent, _, name = key.rpartition(".")
    section = _section(config, parent)
    kind = None if section is None or name not in section else OmegaConf.get_type(section, name)
    return kind if is_dataclass(kind) else None


def _section(config: DictConfig, key: str) -> DictConfig | None:
    node = OmegaConf.select(config, key) if key else config
    return node if isinstance(node, DictConfig) else None


def _sections(config: DictConfig, prefix: str = "") -> Iterator[tuple[str, DictConfig]]:
    """All sections with their keys, inner ones first."""
    for name in hints_of(OmegaConf.get_type(config)):  # type: ignore[arg-type]
        if _schema(config, name) is not None:
            section = OmegaConf.select(config, name)
            yield from _sections(section, f"{prefix}{name}.")
            yield prefix + name, section


def known_keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """All keys of a configuration with the parts that are picked, those of sections dotted."""
    for name in hints_of(OmegaConf.get_type(config)):  # type: ignore[arg-type]
        if _schema(config, name) is None:
            yield prefix + name
        else:
            yield from known_keys(OmegaConf.select(config, name), f"{prefix}{name}.")


def present_key(key: str, known: list[str]) -> str:
    """The key that a setting has since the parts of a method have sections; else ``key`` itself."""
    section, _, last = key.rpartition(".")
    dot = section and f"{section}."
    if key in known:
        return key
    if last in _RENAMED and dot + _RENAMED[last] in known:
        return dot + _RENAMED[last]
    below = [name for name in known if name.startswith(dot) and _last(name) == last]
    return below[0] if len(below) == 1 else key


_RENAMED = {
    "adapt_classifier": "session.classifier",
    "answer": "answer.name",
    "classifier": "head.name",
    "covariance_shrinkage": "head.shrinkage",
    "drift": "drift.method",
    "drift_sigma": "drift.sigma",
    "head": "head.name",
    "head_options": "head.name",
    "mix_largest": "loss.mix",
    "mix_least": "loss.mix",
    "projector_hidden": "projector.hidden",
    "projector_outputs": "projector.outputs",
    "variance_shrinkage": "head.shrinkage",
}


def _unknown_key(key: str, known: list[str]) -> str:
    """What is wrong with a key: the nearest known one, sought in its own section if it has one."""
    section, _, last = key.rpartition(".")
    here = [name for name in known if name.startswith(f"{section}.")] if section else []
    near = [name for name in (present_key(key, known),) if name in known]
    near += [name for name in known if _last(name) == last]
    # A common section would make any two keys near.
    near += [] if here else difflib.get_close_matches(key, known, n=1)
    closest = difflib.get_close_matches(last, [_last(name) for name in here or known], n=1)
    near += [name for name in here or known if _last(name) in closest]
    if near:
        return f"unknown key {key}: did you mean {near[0]}?"
    return f"unknown key {key}: choose from {', '.join(here or known)}"


def _last(key: str) -> str:
    return key.rpartition(".")[2]
