"""Three ways in which parties share: with all, with all of a pinned roster, or with some."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from protocl.federation.secure.protocol.graph import (
    Neighbourhood,
    circulant,
    share_of,
    sparse_neighbourhood,
)

LARGEST_ROSTER = 128


@dataclass(frozen=True)
class Scheme(ABC):
    """Who shares with whom, and how many must stay.

    Attributes:
        name: what ``method.secure`` calls it.
        against: what is assumed of the server, for the log and ``result.json``.
        counts: whether a party sees all others, and counts for itself who has something new.
    """

    name: ClassVar[str]
    against: ClassVar[str] = "an honest but curious server"
    counts: ClassVar[bool] = True

    @abstractmethod
    def threshold(self, enrolled: int) -> int:
        """How many shares join a secret."""

    def staying(self, enrolled: int) -> int:
        """How many of the enrolled must stay to the end."""
        return self.threshold(enrolled)

    def colluders(self, enrolled: int) -> int:
        """How many are expected to pool what they know; at least one, who subtracts itself."""
        return max(1, (enrolled - 1) // 3)

    def most_colluders(self, enrolled: int) -> int:
        """How many may pool what they know before the scheme breaks."""
        return self.threshold(enrolled) - 1

    def most_pooling(self, enrolled: int) -> int:
        """How many that keep to the protocol may pool what they know, and learn only sums."""
        return self.threshold(enrolled) - 1

    def degree(self, enrolled: int) -> int:
        """How many others a party shares with."""
        return enrolled - 1

    def neighbours(self, parties: Collection[int]) -> dict[int, frozenset[int]]:
        """The others that each party shares with."""
        everybody = frozenset(parties)
        return {party: everybody - {party} for party in parties}

    @property
    def terms(self) -> str:
        """What all parties must agree on."""
        return self.name

    @property
    def remark(self) -> str:
        """What else to say where too many left."""
        return ""


@dataclass(frozen=True)
class Complete(Scheme):
    """Everybody shares with everybody, and all but a third must stay (Bonawitz et al. 2017)."""

    name = "true"

    def threshold(self, enrolled: int) -> int:
        """All but a third, so always a majority."""
        return enrolled - enrolled // 3


COMPLETE = Complete()


@dataclass(frozen=True)
class Pinned(Scheme):
    """Everybody of a roster that each party knows beforehand; the server may lie.

    Two lists of survivors cannot both be signed by ``t`` of ``n`` members if ``c`` of them sign
    both and ``2 t > n + c``. ``n`` is the size of the roster, not of those who are there: a server
    could choose them. Those who are away count as having left.

    Attributes:
        size: members of the roster.
        digest: of the roster.
    """

    name = "pinned"
    against = "a server that lies"

    size: int
    digest: str

    def threshold(self, enrolled: int = 0) -> int:
        """Two thirds of the roster, rounded down, and one."""
        return 2 * self.size // 3 + 1

    def colluders(self, enrolled: int) -> int:
        """See :meth:`Scheme.colluders`; of the roster."""
        return super().colluders(self.size)

    def most_colluders(self, enrolled: int) -> int:
        """So many that no two lists of survivors find enough who sign."""
        return 2 * self.threshold() - self.size - 1

    @property
    def may_leave(self) -> int:
        """How many of the roster may be away, or leave: of three none, of six one."""
        return self.size - self.threshold()

    @property
    def remark(self) -> str:
        """How many may leave."""
        return f"; of {self.size} on the pinned roster {self.may_leave or 'none'} may be away"

    @property
    def terms(self) -> str:
        """Its name and the roster."""
        return f"{self.name} {self.size} {self.digest}"


@dataclass(frozen=True)
class Graph(Scheme):
    """A party shares with some others only (:mod:`.graph`); the server keeps to the protocol.

    Few parties have no good graph with less than half of all pairs; they share as in
    :class:`Complete`. Nobody sees
    all others, so it is the server that counts who has something new.

    Attributes:
        colluding: share of the parties that may pool what they know with the server.
        leaving: share of them that may leave before the end.
    """

    name = "graph"
    counts = False

    colluding: float = 0.2
    leaving: float = 0.2

    def __post_init__(self) -> None:
        for name, share in (("colluding", self.colluding), ("leaving", self.leaving)):
            if not 0 <= share < 1:
                raise ValueError(f"{name}={share}: expected a share of 0 or more, below 1")
        if self.colluding + self.leaving > 0.9:
            raise ValueError(
                f"colluding={self.colluding} and leaving={self.leaving}: expected 0.9 together at "
                "most; no graph keeps the others connected"
            )

    def threshold(self, enrolled: int) -> int:
        """Of a party's neighbours."""
        sparse = self._sparse(enrolled)
        return COMPLETE.threshold(enrolled) if sparse is None else sparse.threshold

    def staying(self, enrolled: int) -> int:
        """All but the share that may leave."""
        if self._sparse(enrolled) is None:
            return COMPLETE.staying(enrolled)
        return enrolled - share_of(enrolled, self.leaving)

    def colluders(self, enrolled: int) -> int:
        """The share that may collude; at least one."""
        return max(1, share_of(enrolled, self.colluding))

    def most_colluders(self, enrolled: int) -> int:
        """As many as the graph was chosen for."""
        if self._sparse(enrolled) is None:
            return COMPLETE.most_colluders(enrolled)
        return share_of(enrolled, self.colluding)

    def most_pooling(self, enrolled: int) -> int:
        """As many as the graph was chosen for."""
        return self.most_colluders(enrolled)

    def degree(self, enrolled: int) -> int:
        """``k``, some 112 of 1,000."""
        sparse = self._sparse(enrolled)
        return enrolled - 1 if sparse is None else sparse.degree

    def neighbours(self, parties: Collection[int]) -> dict[int, frozenset[int]]:
        """A new random graph each time."""
        if self._sparse(len(parties)) is None:
            return super().neighbours(parties)
        return circulant(parties, self.degree(len(parties)))

    @property
    def terms(self) -> str:
        """Its name and the shares."""
        return f"{self.name} {self.colluding} {self.leaving}"

    def _sparse(self, enrolled: int) -> Neighbourhood | None:
        return sparse_neighbourhood(enrolled, self.colluding, self.leaving)
