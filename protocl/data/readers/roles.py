"""Which column of a table is what: as the user says, else by the usual names."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from protocl.data.config import ColumnsConfig
from protocl.data.readers.columns import Table
from protocl.errors import ConfigError
from protocl.registry import unknown_name

logger = logging.getLogger(__name__)

USUAL = {
    "label": ("label", "labels", "class", "target"),
    "image": ("image", "img", "file", "filename", "file_name", "path"),
    "split": ("split",),
    "client": ("client",),
    "time": ("time",),
}
_COUNTERS = ("", "unnamed: 0", "id", "index")
"""Columns that count the rows, as programs write them beside the data."""


@dataclass(frozen=True)
class Roles:
    """The columns of a table.

    Attributes:
        label: classes.
        image: pictures; None where samples are numbers.
        features: numbers; empty where samples are pictures.
        split: which part a row is for, or None.
        client: who holds it, or None.
        time: when it came, or None.
    """

    label: str
    image: str | None
    features: Sequence[str]
    split: str | None
    client: str | None
    time: str | None


def roles_of(
    table: Table,
    config: ColumnsConfig,
    *,
    pictures: Collection[str] = (),
    prefix: str = "benchmark.columns.",
) -> Roles:
    """Say which column is what.

    Args:
        table: at least one row.
        config: what the user says.
        pictures: columns that are known to hold pictures, whatever their names.
        prefix: with the name of a role, how the user says it.

    Raises:
        ConfigError: a named column is not there, none is found for the classes, or several are.
    """
    found = {role: _found(table, role, getattr(config, role), prefix) for role in USUAL}
    image = found["image"] or next(iter(pictures), None)
    label = found["label"]
    if label is None:
        raise ConfigError(
            f"{table.where}: no column is called {' or '.join(USUAL['label'])}; name that of the "
            f"classes in {prefix}label, out of {_shown(table)}"
        )
    if config.features is not None:
        if config.image is not None:
            raise ConfigError(
                f"{prefix}image and {prefix}features: a sample is a picture or numbers; name one "
                "of the two"
            )
        for name in config.features:
            _require(table, "features", name, prefix)
        _refuse_misnamed(config.features, label, prefix)
        image = None
    taken = {label, image, found["split"], found["client"], found["time"]}
    features = [] if image is not None else _features(table, config, taken, prefix)
    return Roles(label, image, features, found["split"], found["client"], found["time"])


def _features(
    table: Table, config: ColumnsConfig, taken: Collection[str | None], prefix: str
) -> list[str]:
    if config.features is not None:
        return list(config.features)
    free = [name for name in table.columns if name not in taken]
    counters = [name for name in free if _counts_rows(table, name)]
    if counters:
        logger.warning(
            "%s: column '%s' counts the rows and is no feature; name it in %sfeatures if it is one",
            table.where, counters[0], prefix,
        )  # fmt: skip
    features = [name for name in free if name not in counters]
    if not features:
        raise ConfigError(
            f"{table.where}: no column is left for the features, out of {_shown(table)}; name them "
            f"in {prefix}features=[A,B], or pictures in {prefix}image"
        )
    return features


def _refuse_misnamed(features: Sequence[str], label: str, prefix: str) -> None:
    """Refuse the column of the classes among the features, which would give the answer away."""
    if label in features:
        raise ConfigError(
            f"{prefix}features: '{label}' is the column of the classes; leave it out, or name that "
            f"of the classes in {prefix}label"
        )
    twice = next((name for name in features if features.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{prefix}features: '{twice}' is named twice; name each column once")


def _counts_rows(table: Table, name: str) -> bool:
    return name.lower() in _COUNTERS and len(set(map(str, table.columns[name]))) == len(table)


def _found(table: Table, role: str, wanted: str | None, prefix: str) -> str | None:
    """The column of a role: the one that the user names, or the one with a usual name."""
    if wanted is not None:
        return _require(table, role, wanted, prefix)
    usual = [name for name in table.columns if name.lower() in USUAL[role]]
    if len(usual) > 1:
        raise ConfigError(
            f"{table.where}: '{usual[0]}' and '{usual[1]}' may both be the {role}; name one in "
            f"{prefix}{role}"
        )
    return usual[0] if usual else None


def _require(table: Table, role: str, name: str, prefix: str) -> str:
    if name not in table.columns:
        raise ConfigError(f"{prefix}{role}: {unknown_name('column', name, table.columns)}")
    return name


def _shown(table: Table) -> str:
    names = [f"'{name}'" for name in table.columns]
    if len(names) > 12:  # the classes are often the last
        names[6:-6] = [f"{len(names) - 12} more"]
    return ", ".join(names)
