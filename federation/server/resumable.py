"""What strategies have in common that another process can take up after any round."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from protocl.federation.wire.relayed_grids import MeteredGrid
from protocl.federation.wire.traffic import Traffic
from protocl.io.checkpoint import CheckpointFolder
from protocl.memory import PrototypeMemory


class LastingStrategy(Strategy):
    """A Flower strategy that measures every message and can be continued from its checkpoints.

    Args:
        checkpoints: folder of the checkpoints; None for none.

    Attributes:
        round: number of rounds finished, also by an earlier process.
        traffic: bytes of every message.
        measuring: seconds that counting them took.
    """

    def __init__(self, checkpoints: Path | None) -> None:
        self.round = 0
        self.traffic = Traffic()
        self.measuring = 0.0
        self._first = 0
        self._checkpoints = None if checkpoints is None else CheckpointFolder(checkpoints)

    @property
    @abstractmethod
    def memory(self) -> PrototypeMemory:
        """The merged memory; read it, do not change it."""

    @abstractmethod
    def outcome(self, number: int) -> Mapping[str, Any]:
        """What round ``number`` brought."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """All that a checkpoint holds besides rounds and traffic."""

    @abstractmethod
    def _take_up(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`_state` gave."""

    def resume(self) -> bool:
        """Continue from the newest checkpoint that is whole.

        Returns:
            False where there is none.

        Raises:
            ConfigError, ValueError, FingerprintError: it belongs to a federation of another kind.
        """
        state = self._checkpoints and self._checkpoints.load_newest({})
        if not state:
            return False
        self._take_up(state)
        self.traffic.rows = state["traffic"]
        self.round = state["round"]
        return True

    def start(self, grid: Grid, *arguments: Any, **options: Any) -> Result:
        """Run rounds, as every Flower strategy does, and measure every message.

        Raises:
            AllFailedError: all clients failed in all rounds.
        """
        metered = MeteredGrid(grid, self.traffic)
        result = super().start(metered, *arguments, **options)
        self.measuring += metered.seconds
        metered.require_answers()
        return result

    def _begin(self, server_round: int) -> None:
        """Count a round on from those of earlier runs; Flower begins with 1 each time."""
        if server_round == 1:
            self._first = self.round
        self.round = self._first + server_round

    def _save(self, finished: int) -> None:
        """Write a checkpoint, after ``finished`` whole rounds."""
        if self._checkpoints is None:
            return
        state = {"round": finished, "traffic": self.traffic.rows, **self._state()}
        self._checkpoints.save(self.round, state, {})
