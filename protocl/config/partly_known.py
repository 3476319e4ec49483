"""Refuse a key of a sweep that only some of the parts have over which it goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from protocl.config.keys import UnknownKeyError
from protocl.errors import ConfigError

Settings = Mapping[str, Any]


def refuse_partly_known(
    key: str, runs: Sequence[Settings], compose: Callable[[dict[str, Any]], Any]
) -> None:
    """Refuse ``key``, unknown in one of the runs, where others know it.

    Args:
        key: in full.
        runs: all settings of each run.
        compose: from the settings of a run to its configuration.

    Raises:
        ConfigError: it names the parts that have the key, those that do not, and what to type.
    """
    knowing: dict[str, Settings] = {}
    lacking: dict[str, Settings] = {}
    for run in runs:
        above = {name: run[name] for name in run if _decides(name, key)}
        there = knowing if _knows(key, run, compose) else lacking
        there[_typed({name: v for name, v in above.items() if _swept(name, runs)})] = above
    if not (knowing and lacking) or "" in lacking:
        return
    value = ",".join(dict.fromkeys(str(run.get(key, "VALUE")) for run in runs))
    raise ConfigError(
        f"{key} is a key of {_listed(knowing)}, but not of {_listed(lacking)}: type "
        f"'{next(iter(knowing))} {key}={value}' in a command of its own, and leave {key} out of "
        "that for the others"
    )


def _knows(key: str, run: Settings, compose: Callable[[dict[str, Any]], Any]) -> bool:
    """Whether the parts that a run picks have the key, whatever else is wrong with the run."""
    needed = {name: v for name, v in run.items() if _decides(name, key) or _holds(name, key)}
    try:
        compose(needed)
    except UnknownKeyError as error:
        return error.key != key
    except ConfigError:
        return True
    return True


def _decides(name: str, key: str) -> bool:
    """Whether a setting picks a part that the key is in."""
    return key.startswith(f"{name.removesuffix('.name')}.") and name != key


def _holds(name: str, key: str) -> bool:
    return name == key or key.startswith(f"{name}.")


def _swept(name: str, runs: Sequence[Settings]) -> bool:
    return any(run.get(name) != runs[0].get(name) for run in runs)


def _typed(settings: Settings) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def _listed(parts: Mapping[str, Settings]) -> str:
    return " and ".join(f"'{part}'" for part in parts)
