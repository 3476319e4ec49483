"""Clients whose data are parts of a benchmark."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from protocl.data.arrays import ArrayData
from protocl.data.config import BenchmarkConfig
from protocl.data.streams import class_order, experience_sizes
from protocl.federation.client.client import ClientData
from protocl.federation.client.partition import PartitionConfig, Rows, assign, schedule

if TYPE_CHECKING:
    from flwr.app import Context


def stages_of(
    benchmark: BenchmarkConfig, partition: PartitionConfig, labels: Tensor, seed: int
) -> list[list[int]]:
    """The classes of each stage; one stage for all where they do not arrive in a stream.

    Args:
        benchmark: their order, and how a stream is cut.
        partition: whether there is a stream.
        labels: ``(N,)`` class ids of all training samples.
        seed: of the run.
    """
    order = list(class_order(benchmark, labels, seed))
    if partition.growth != "stream":
        return [order]
    cuts = itertools.accumulate(experience_sizes(benchmark, len(order)), initial=0)
    return [order[start:end] for start, end in itertools.pairwise(cuts)]


@dataclass
class BenchmarkClients:
    """Gives client ``partition-id`` its part of the features of a benchmark.

    Args:
        data: features ``(N, D)`` and labels.
        parts: for each client the row numbers that arrive in each round.
        tests: also give each client the test data of its classes.
        file: where the features lie for other processes; with it a pickled copy holds none.
    """

    data: ArrayData
    parts: Sequence[Sequence[Rows]]
    tests: bool = True
    file: Path | None = None
    _known: dict[int, ClientData] = field(default_factory=dict)

    @classmethod
    def from_config(
        cls,
        data: ArrayData,
        config: PartitionConfig,
        *,
        clients: int,
        rounds: int,
        seed: int,
        stages: Sequence[Sequence[int]] = (),
        tests: bool = True,
    ) -> BenchmarkClients:
        """Share out the training data of ``data``; see :mod:`.partition`."""
        owned = assign(data.y_train, clients, config, seed)
        return cls(
            data,
            [
                schedule(data.y_train, rows, rounds, config.growth, seed * 1_000_003 + i, stages)
                for i, rows in enumerate(owned)
            ],
            tests,
        )

    def __call__(self, context: Context) -> ClientData:
        """The data of the client that ``context`` describes."""
        client = int(context.node_config["partition-id"])
        if client not in self._known:
            self._known[client] = self._gather(client)
        return self._known[client]

    def spill(self, file: Path) -> None:
        """Write the features to ``file``, so that worker processes read them from there."""
        torch.save(self.data, file)
        self.file = file

    def __getstate__(self) -> dict[str, Any]:
        state = {**vars(self), "_known": {}}
        return state | {"data": None} if self.file is not None else state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.file is not None:
            self.data = torch.load(self.file, weights_only=False)

    def _gather(self, client: int) -> ClientData:
        rows = [torch.from_numpy(part) for part in self.parts[client]]
        chunks = [(self.data.x_train[part], self.data.y_train[part]) for part in rows]
        if not self.tests:
            return ClientData(chunks)
        return ClientData(chunks, test=self._test(torch.cat([y for _, y in chunks]).unique()))

    def _test(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Test data of the client's own classes."""
        own = torch.isin(self.data.y_test, classes)
        return self.data.x_test[own], self.data.y_test[own]
