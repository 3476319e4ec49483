"""Federated averaging that starts from statistics: FedNCM, Fed3R and FedCOF before fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor, nn

from protocl.federation.methods.averaging import WeightAveraging
from protocl.federation.methods.group_means.fedcof import GroupMerge
from protocl.federation.server.state import MergedMemory
from protocl.federation.server.strategy import FederatedPrototypes
from protocl.federation.server.unasked import ServerEvaluates
from protocl.heads import Head, LinearDiscriminant, NearestMean, Ridge
from protocl.memory.estimates.subsamples import SubSamples
from protocl.memory.feature_maps import unit
from protocl.metrics.confusion import Confusion

if TYPE_CHECKING:
    from protocl.memory import PrototypeMemory

Start = Literal["none", "nearest_mean", "lda", "ridge", "fedcof"]

_F64 = torch.float64

HEADS: Mapping[str, Callable[[], Head]] = {
    "nearest_mean": lambda: NearestMean(dtype=_F64),
    "lda": lambda: LinearDiscriminant(dtype=_F64),
    "ridge": lambda: Ridge(regularization=0.01, bias=True, normalize=True, dtype=_F64),
    "fedcof": lambda: Ridge(regularization=1e-6, scatter="within", normalize=True, dtype=_F64),
}
"""Heads whose layer averaging starts from: FedNCM's, the discriminant, Fed3R's, FedCOF's."""

MERGES = {"fedcof": GroupMerge(SubSamples())}
"""How clients' statistics are merged where their exact sum is not meant."""


def write_layer(layer: nn.Linear, start: Start, memory: PrototypeMemory) -> None:
    """Write a head's weights into a layer; rows of classes without samples stay as they are.

    FedNCM's rows are class means of unit length without a bias; the others' are such that the layer
    scores as the head does.

    Args:
        layer: one row a class id.
        start: a key of :data:`HEADS`.
        memory: merged statistics.
    """
    weight, bias = _affine(HEADS[start]().fit(memory), start, memory)
    with torch.no_grad():
        layer.weight[memory.classes] = weight.to(layer.weight)
        layer.bias[memory.classes] = bias.to(layer.bias)


def _affine(head: Head, start: Start, memory: PrototypeMemory) -> tuple[Tensor, Tensor]:
    """Weight ``(C, D)`` and bias ``(C,)`` of the scores of a linear head."""
    if start == "nearest_mean":
        means = unit(memory.means)
        return means, means.new_zeros(len(means))
    bias = head(torch.zeros(1, memory.feature_dim, dtype=_F64))[0]
    return (head(torch.eye(memory.feature_dim, dtype=_F64)) - bias).T, bias


class ExchangeThenTrain(ServerEvaluates):
    """Exact merging in the first round, then federated averaging from the layer that it gave.

    Args:
        exchange: of the first round.
        averaging: of the others.
        begin: makes the weights to start from of the merged memory.
    """

    def __init__(
        self,
        exchange: FederatedPrototypes,
        averaging: WeightAveraging,
        begin: Callable[[PrototypeMemory], ArrayRecord],
    ) -> None:
        self.exchange = exchange
        self.averaging = averaging
        self.begin = begin

    @property
    def merged(self) -> MergedMemory:
        """The server's state of the first round."""
        return self.exchange.merged

    @property
    def evaluations(self) -> Mapping[int, Confusion]:
        """Nobody evaluates but the server."""
        return {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for statistics, or for weights."""
        phase = self.exchange if server_round == 1 else self.averaging
        return phase.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge statistics and fit the layer, or average weights.

        Raises:
            AllFailedError: clients failed, or were refused, and there is nothing to start from.
        """
        if server_round > 1:
            return self.averaging.aggregate_train(server_round, replies)
        _, metrics = self.exchange.aggregate_train(server_round, replies)
        memory = self.exchange.memory
        if not len(memory):
            self.exchange.merged.ledger.require_merged()
            return None, metrics
        return self.begin(memory), metrics

    def summary(self) -> None:
        """Log both phases."""
        self.exchange.summary()
        self.averaging.summary()
