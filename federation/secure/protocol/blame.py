"""Who stopped or spoilt secure sums, and is left out of the next ones.

*Complaints.* Of a party that complains and the one that it complains of, one broke the protocol,
and nobody else can tell which. But all who do are few: ``c`` at most. Who is in dispute with more
than ``c`` others is one of them, for honest parties have no disputes with each other. Of what
remains, pairs are taken that have no party in common, and both of each pair are left out: so no
more honest parties than others are.

*Sums out of range.* A vector under masks can be anything, and only the sum is seen. Whose it was is
found by halving: those who were in the sum are suspected, half of them are left out of the next,
and the suspicion stays with those who were in if it fails again, with the others if it does not.
After ``log2 n`` sums one is left.

Who is named once is left out of the next attempt, then of the next two, four and so on. Whose
shares were proven to give nothing is left out for good.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass
class Blame:
    """What is held against nodes.

    Attributes:
        reasons: node -> why it was named last.
        suspects: nodes of which one at least spoilt a sum.
    """

    reasons: dict[int, str] = field(default_factory=dict)
    suspects: frozenset[int] = frozenset()
    _times: Counter[int] = field(default_factory=Counter)
    _until: dict[int, float] = field(default_factory=dict)

    def name(self, node: int, why: str, attempt: int, *, proven: bool = False) -> None:
        """Hold something against ``node`` that it did in this attempt."""
        self._until[node] = math.inf if proven else attempt + 1 + 2 ** self._times[node]
        self._times[node] += 1
        self.reasons[node] = why

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
        self.suspects = (self.suspects & set(members)) or frozenset(members)
        if len(self.suspects) == 1:
            (node,) = self.suspects
            self.name(node, "every sum that it was in was out of range", attempt)
            self.suspects = frozenset()

    def succeeded(self, members: Collection[int]) -> None:
        """Note that the sum of ``members`` was in range."""
        self.suspects -= set(members)

    def left_out(self, attempt: int) -> set[int]:
        """Who is left out of an attempt because of what it did before."""
        return {node for node, until in self._until.items() if attempt < until}

    def set_aside(self) -> set[int]:
        """Half of the suspects, to find out which half to suspect."""
        return set(sorted(self.suspects)[: len(self.suspects) // 2])
