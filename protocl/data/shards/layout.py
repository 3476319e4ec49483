"""One order of columns for all tables of a stream: features are told apart by their names."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace

from protocl.data.config import ColumnsConfig
from protocl.data.readers.columns import Table
from protocl.data.readers.roles import Roles, roles_of
from protocl.data.shards.shard import DamagedShardError, Layout, Shard
from protocl.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


def of_one_layout(shards: Sequence[Shard]) -> Layout | None:
    """Have all tables read as the first one of numbers is; None where there is none.

    A column that says which rows are for a test is told of: a stream learns from every row.
    """
    found = next((first for shard in shards if (first := _first_rows(shard)) is not None), None)
    if found is None:
        return None
    table, roles = found
    if roles.split is not None:
        logger.warning(
            "%s: column '%s' is not looked at: every row is learned from, those for a test as "
            "well; leave out of the shards what is to be tested on", table.where, roles.split,
        )  # fmt: skip
    if roles.image is not None:
        return None
    layout = Layout(frozenset(table.columns), tuple(roles.features))
    for shard in shards:
        shard.layout = layout
    return layout


def _first_rows(shard: Shard) -> tuple[Table, Roles] | None:
    try:
        return shard.first_rows()
    except DataError:
        return None  # whoever reads its entries says what is wrong


def shard_roles(
    table: Table, config: ColumnsConfig, layout: Layout | None, pictures: Collection[str] = ()
) -> Roles:
    """Which column of a shard is what, features in the order that all shards of a stream have.

    Args:
        table: at least one row of it.
        config: what the user says.
        layout: of the stream, if it is known.
        pictures: columns that are known to hold pictures.

    Raises:
        DamagedShardError: a column is absent or might be several, or features have other names.
    """
    if layout is not None and layout.names == set(table.columns):
        config = replace(config, features=list(layout.features))
    try:
        roles = roles_of(table, config, pictures=pictures, prefix="--")
    except ConfigError as error:
        raise DamagedShardError(str(error)) from error
    if layout is None or roles.image is not None:
        return roles
    other = sorted(set(roles.features) ^ set(layout.features))
    if other:
        raise DamagedShardError(
            f"{table.where}: column '{other[0]}' is a feature here or in the first table, but not "
            "in both; expected columns of the same names in all: name those that are features in "
            "--features A,B, or rename them"
        )
    return replace(roles, features=layout.features)
