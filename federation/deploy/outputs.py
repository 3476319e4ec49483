"""What a deployed server writes for people and programs to read, besides its books."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from protocl.federation.server.resumable import LastingStrategy
from protocl.io.atomic import atomic_write

_END = b"\n]\n"


class Outputs:
    """The files of a server's folder: ``memory.safetensors`` and ``rounds.json`` after each round.

    ``traffic.csv`` and, where there is one, ``ledger.jsonl`` grow with all rounds, and are written
    when a run begins, when something is forgotten and when it ends; until then the books have them.
    What became of earlier contributions since (``replaced``) is in ``rounds.json`` from then on.

    Args:
        folder: in which they are.
        strategy: of which they tell.
    """

    def __init__(self, folder: Path, strategy: LastingStrategy) -> None:
        self._folder, self._strategy = folder, strategy
        self._rounds = folder / "rounds.json"
        self._erasures = self._erased()

    def write_all(self) -> None:
        """Write all files anew."""
        strategy, self._erasures = self._strategy, self._erased()
        rows = ["\n" + json.dumps(self._row(number)) for number in range(1, strategy.round + 1)]
        atomic_write(self._rounds, "[" + ",".join(rows) + _END.decode())
        strategy.memory.save(self._folder / "memory.safetensors")
        merged = getattr(strategy, "merged", None)
        if merged is not None:
            merged.ledger.save(self._folder / "ledger.jsonl")
        strategy.traffic.save(self._folder / "traffic.csv")

    def write_round(self) -> None:
        """Write the memory, and what the round that has just ended brought."""
        if self._erasures != self._erased():  # what was forgotten is to be in no file
            self.write_all()
            return
        self._strategy.memory.save(self._folder / "memory.safetensors")
        row = json.dumps(self._row(self._strategy.round)).encode()
        # One row more: what stands there is not written again in each round.
        with self._rounds.open("r+b") as file:
            end = file.seek(-len(_END), 2)
            file.seek(end)
            between = b"" if end == 1 else b","
            file.write(between + b"\n" + row + _END)

    def _erased(self) -> int:
        """How often something was forgotten, by an operator or by its client."""
        merged = getattr(self._strategy, "merged", None)
        return 0 if merged is None else int(merged.erasures)

    def _row(self, number: int) -> dict[str, Any]:
        return {
            "round": number,
            **self._strategy.outcome(number),
            "bytes-up": self._strategy.traffic.total("up", number),
            "bytes-down": self._strategy.traffic.total("down", number),
        }
