"""Who stopped or spoilt secure sums, and is left out of the next ones.

*Complaints.* Of a party that complains and the one that it complains of, one broke the protocol,
and nobody else can tell which. But all who do are few: ``c`` at most. Who is in dispute with more
than ``c`` others is one of them, for honest parties have no disputes with each other. Of what
remains, pairs are taken that have no party in common, and both of each pair are left out: so no
more honest parties than others are.

*Sums out of range.* A vector under masks can be anything, and only the sum is seen. Whose it was is
found by halving: who was in such a sum is suspected, unless it has been in one that was in range
since; of the suspects, half are in the next sum, with those who are not. Where no smaller sum can
be made, all suspects in it are named. A spoiler of all sums is so named after some ``log2 n`` of
them; others may be named with it where sums must be of many.

Who is named once is left out of the next attempt, then of the next two, four and so on. Whose
shares were proven to give nothing is left out for good.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass
class Blame:
    """What is held against nodes.

    Attributes:
        reasons: node -> why it was named last.
        named: attempt -> node -> why it was named in it.
        suspects: nodes of which one at least spoilt a sum.
        strangers: nodes that signed as no member of a pinned roster.
    """

    reasons: dict[int, str] = field(default_factory=dict)
    named: dict[int, dict[int, str]] = field(default_factory=dict)
    suspects: frozenset[int] = frozenset()
    strangers: frozenset[int] = frozenset()
    _known: set[int] = field(default_factory=set)
    _cleared: set[int] = field(default_factory=set)
    _times: Counter[int] = field(default_factory=Counter)
    _until: dict[int, float] = field(default_factory=dict)

    def name(self, node: int, why: str, attempt: int, *, proven: bool = False) -> None:
        """Hold something against ``node`` that it did in this attempt."""
        self._until[node] = math.inf if proven else attempt + 1 + 2 ** self._times[node]
        self._times[node] += 1
        self.reasons[node] = why
        self.named.setdefault(attempt, {})[node] = why

    def judge(
        self, complaints: Mapping[int, Collection[int]], colluders: int, attempt: int
    ) -> None:
        """Name those whom complaints speak against.

        Args:
            complaints: node -> those of whom it complains.
            colluders: how many at most do not keep to the protocol.
            attempt: in which it was.
        """
        pairs = {
            frozenset((one, other))
            for one, others in complaints.items()
            for other in others
            if one != other
        }
        disputes = Counter(node for pair in pairs for node in pair)
        guilty = {node for node, number in disputes.items() if number > colluders}
        for node in sorted(guilty):
            why = f"keys or shares: in dispute with {disputes[node]} others, more than may collude"
            self.name(node, why, attempt)
        settled = set(guilty)
        for one, other in sorted(map(sorted, pairs)):
            if settled.isdisjoint((one, other)):
                self.name(one, f"keys or shares: in dispute with {other}", attempt)
                self.name(other, f"keys or shares: in dispute with {one}", attempt)
                settled |= {one, other}

    def dropped(self, members: Collection[int], attempt: int) -> None:
        """Note that the sum of ``members`` was out of range."""
        self._known |= set(members)
        fresh = set(members) - self._cleared
        if not fresh:  # one of those who kept to the protocol does so no more
            self._cleared, fresh = set(), set(members)
        found = frozenset(self.suspects & fresh or fresh)
        if found != self._known and (len(fresh) == 1 or found == self.suspects):
            for node in sorted(found):
                self.name(node, f"sums out of range, with {len(found) - 1} others", attempt)
            self.suspects = frozenset()
        else:
            self.suspects = found

    def succeeded(self, members: Collection[int]) -> None:
        """Note that the sum of ``members`` was in range."""
        self._known |= set(members)
        self._cleared |= set(members)
        self.suspects -= set(members)

    def left_out(self, attempt: int) -> set[int]:
        """Who is left out of an attempt because of what it did before."""
        return {node for node, until in self._until.items() if attempt < until}

    def not_expected(self, attempt: int) -> frozenset[int]:
        """Whom an attempt does not wait for: those left out of it who will be of no more use."""
        return self.strangers & self.left_out(attempt)

    def to_ask(self, nodes: Collection[int], attempt: int, fewest: int) -> list[int]:
        """Whom of ``nodes`` to ask: all but some of the suspects, to find out whom to suspect.

        Args:
            nodes: who may be asked.
            attempt: decides which suspects.
            fewest: how many are asked at least.
        """
        suspects = sorted(self.suspects.intersection(nodes))
        if not suspects:
            return sorted(nodes)
        random.Random(attempt).shuffle(suspects)
        cleared = self._cleared.intersection(nodes)
        some = suspects[: max((len(suspects) + 1) // 2, fewest - len(cleared))]
        asked = sorted(cleared.union(some))
        return asked if len(asked) >= fewest else sorted(nodes)
