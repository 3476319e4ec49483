"""How a client leaves an edge: what the edge gives it along."""

from __future__ import annotations

import json
from typing import NamedTuple, Self

MOST_MOVES = 1_000_000
"""That a client makes."""


class Release(NamedTuple):
    """That an edge counts a client no longer, which another edge may do from now on.

    Attributes:
        client: its name at the old edge.
        lives: names of its lives there (:func:`.client.name_of_life`).
        number: of moves that the client made, with this one.
        source, target: names of the old edge and the new one.
    """

    client: str
    lives: tuple[str, ...]
    number: int
    source: str
    target: str

    def to_text(self) -> str:
        """What the old edge signs."""
        return json.dumps(self._asdict(), sort_keys=True)

    def signed(self, signature: str) -> str:
        """What a client carries, with a signature in hexadecimal digits."""
        return json.dumps({"release": self._asdict(), "signature": signature}, sort_keys=True)

    @classmethod
    def read(cls, text: str) -> tuple[Self, str]:
        """A release, and its signature, which nobody has checked yet.

        Raises:
            ValueError: the text is no release.
        """
        try:
            values = json.loads(text)
            release, signature = cls(**values["release"]), values["signature"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{text!r:.80} is no release of an edge: {error!r:.80}") from error
        lives = release.lives
        texts = (release.client, release.source, release.target, signature)
        if not isinstance(lives, list) or not all(isinstance(t, str) for t in (*texts, *lives)):
            raise ValueError(f"{text!r:.80} is no release of an edge: texts are expected")
        if not isinstance(release.number, int) or not 1 <= release.number <= MOST_MOVES:
            raise ValueError(f"number={release.number!r:.80}: expected 1 to {MOST_MOVES}")
        return release._replace(lives=tuple(lives)), signature
