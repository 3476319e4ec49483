"""How a round of a federation is conducted."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocl.federation.wire.codec import Precision
from protocl.federation.wire.validation import Limits


@dataclass
class Options:
    """How a round is conducted.

    Attributes:
        participation: share of the nodes online that is asked in each round, in (0, 1].
        min_clients: nodes that must be online before a round begins.
        wait: seconds to wait for them.
        evaluate: share of the nodes online that evaluate after each round; 0 for none.
        precision: of the merged memory as it is sent to clients.
        limits: what one contribution may at most claim.
        seed: decides who is asked.
    """

    participation: float = 1.0
    min_clients: int = 1
    wait: float = 60.0
    evaluate: float = 1.0
    precision: Precision = "exact"
    limits: Limits = field(default_factory=Limits)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.participation <= 1:
            raise ValueError(f"participation={self.participation}: expected 0 < share <= 1")
        if not 0 <= self.evaluate <= 1:
            raise ValueError(f"evaluate={self.evaluate}: expected 0 <= share <= 1")
        if self.min_clients < 1:
            raise ValueError(f"min_clients={self.min_clients}: expected at least 1")
