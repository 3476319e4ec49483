"""Two strategies one after the other: averaged weights, then prototypes of the frozen network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from protocl.federation.methods.averaging import WeightAveraging, read_weights
from protocl.federation.server.state import MergedMemory
from protocl.federation.server.strategy import FederatedPrototypes
from protocl.metrics.confusion import Confusion


class TrainThenExchange(Strategy):
    """Federated averaging for some rounds, then exact merging under the network that came out.

    Args:
        averaging: of the first rounds.
        freeze: makes the second strategy from the averaged weights ``(W,)``.
        training_rounds: number of the first rounds, at least 1.

    Attributes:
        exchange: the second strategy; None before it begins.
    """

    def __init__(
        self,
        averaging: WeightAveraging,
        freeze: Callable[[Tensor], FederatedPrototypes],
        training_rounds: int,
    ) -> None:
        self.averaging = averaging
        self.freeze = freeze
        self.training_rounds = training_rounds
        self.exchange: FederatedPrototypes | None = None

    @property
    def merged(self) -> MergedMemory | None:
        """The server's state in the second phase."""
        return None if self.exchange is None else self.exchange.merged

    @property
    def evaluations(self) -> Mapping[int, Confusion]:
        """Round -> confusion over the clients' own test data, of the second phase."""
        return {} if self.exchange is None else self.exchange.evaluations

    def start(self, grid: Grid, *arguments: Any, **options: Any) -> Result:
        """Run all rounds, as every Flower strategy does.

        Raises:
            AllFailedError: clients failed, or were refused, and no statistics were ever merged.
        """
        result = super().start(grid, *arguments, **options)
        if self.exchange is not None:
            self.exchange.merged.ledger.require_merged()
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for weights, or for statistics."""
        if server_round > self.training_rounds and self.exchange is None:
            self.exchange = self.freeze(read_weights(arrays))
            self.exchange.round = self.training_rounds
        phase, number = self._phase(server_round)
        return phase.configure_train(number, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average weights, or merge statistics."""
        phase, number = self._phase(server_round)
        return phase.aggregate_train(number, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the present phase does."""
        phase, number = self._phase(server_round)
        return phase.configure_evaluate(number, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """As the present phase does."""
        phase, number = self._phase(server_round)
        return phase.aggregate_evaluate(number, replies)

    def summary(self) -> None:
        """Log both phases."""
        self.averaging.summary()

    def _phase(self, server_round: int) -> tuple[Any, int]:
        if self.exchange is None:
            return self.averaging, server_round
        return self.exchange, server_round - self.training_rounds
