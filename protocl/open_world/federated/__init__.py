"""Categories that nobody taught: rows without a name, and what all agree that they are."""

from protocl.open_world.federated.aliases import Aliases, agree
from protocl.open_world.federated.namings import Namings
from protocl.open_world.federated.offset import OffsetTable
from protocl.open_world.federated.provisional import Found, group, provisional_rows
from protocl.open_world.federated.refinement import refined

__all__ = [
    "Aliases",
    "Found",
    "Namings",
    "OffsetTable",
    "agree",
    "group",
    "provisional_rows",
    "refined",
]
