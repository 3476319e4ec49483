"""Names given later: a set of facts, merged by union."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from protocl.memory.rows import class_id_of
from protocl.open_world.federated.provisional import require_no_prefix


@dataclass(frozen=True)
class Namings:
    """Who called which row what; facts, where :class:`.Aliases` are opinions.

    Attributes:
        facts: pairs of a row's id and a name.

    Example:
        >>> both = Namings.of({7: "cat"}) | Namings.of({9: "dog"})
        >>> both.names
        {7: 'cat', 9: 'dog'}
    """

    facts: frozenset[tuple[int, str]] = frozenset()

    @classmethod
    def of(cls, names: Mapping[int, str]) -> Namings:
        """One name for each of some rows; composed and decomposed letters make the same name.

        Raises:
            TypeError: a row is no whole number, or a name no text.
            ValueError: a name is empty, or begins as those of nameless rows do.
        """
        for row, name in names.items():
            if type(row) is not int or not isinstance(name, str):
                raise TypeError(f"{row!r}: {name!r}: expected the id of a row, and a text")
            if not name.strip():
                raise ValueError(f"row {row} cannot be called {name!r}: expected a name")
            require_no_prefix(name)
        return cls(frozenset(map(_composed, names.items())))

    def __or__(self, other: Namings) -> Namings:
        return Namings(self.facts | other.facts)

    def without(self, facts: Iterable[tuple[int, str]]) -> Namings:
        """What is left when some facts are taken back."""
        return Namings(self.facts - frozenset(map(_composed, facts)))

    @property
    def names(self) -> dict[int, str]:
        """Row -> name, ascending; of several names the first in alphabetical order counts."""
        return {row: names[0] for row, names in self._by_row.items()}

    @property
    def disputed(self) -> dict[int, list[str]]:
        """Rows that bear several names, with all of them."""
        return {row: names for row, names in self._by_row.items() if len(names) > 1}

    @cached_property
    def class_ids(self) -> dict[int, int]:
        """Row -> the class id that everybody gives to its name."""
        return {row: class_id_of(name) for row, name in self.names.items()}

    @cached_property
    def _by_row(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = defaultdict(list)
        for row, name in sorted(self.facts):
            found[row].append(name)
        return dict(found)


def _composed(fact: tuple[int, str]) -> tuple[int, str]:
    return fact[0], unicodedata.normalize("NFC", fact[1])
