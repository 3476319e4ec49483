"""An edge's side towards the root: one client, whose whole state replaces the one before."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocl.federation.exactly_once.client import Life, Settled


@dataclass
class Standing:
    """What an edge has told the root, and what of it the root has.

    A row is all that the edge has of its clients. Who is withdrawn from the edge is withdrawn from
    the root once that has settled a row without it.

    Attributes:
        life: of the edge as a client of the root.
        included: number of a row -> how many withdrawals it is without.
        withdrawn: how many withdrawals the root's sum is without.
        stated: how many the last row is without.
    """

    life: Life = field(default_factory=Life)
    included: dict[int, int] = field(default_factory=dict)
    withdrawn: int = 0
    stated: int = 0

    def hear(self, server: str, settled: Settled, prove: bool = True) -> None:
        """See :meth:`.Life.hear`."""
        self.life.hear(server, settled, prove)
        acknowledged = self.life.acknowledged
        for number in [seq for seq in self.included if seq <= acknowledged]:
            self.withdrawn = max(self.withdrawn, self.included.pop(number))

    def state(self, samples: int, withdrawals: int, *, changed: bool) -> bool:
        """Send a row if there is anything new to say, or the root lost what was said.

        Args:
            samples: that the edge has now.
            withdrawals: that it is without, ever.
            changed: whether its statistics are others than those of the last row.

        Returns:
            True where the row to send is of what the edge has now; False where it is the last one.
        """
        fresh = changed or withdrawals != self.stated or self._is_lost()
        if fresh:
            self.life.restate(samples)
            self.stated = withdrawals
        for row in self.life.pending:
            self.included[row.seq] = self.stated
        return fresh

    def _is_lost(self) -> bool:
        """Whether there is neither a row on its way nor one that the root has."""
        life = self.life
        return not life.seq or (not life.pending and life.acknowledged != life.seq)
