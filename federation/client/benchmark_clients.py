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
from protocl.errors import ConfigError
from protocl.federation.client.client import ClientData
from protocl.federation.client.partition import GIVEN, PartitionConfig, Rows, assign, schedule

if TYPE_CHECKING:
    from flwr.app import Context


def stages_of(
    benchmark: BenchmarkConfig, partition: PartitionConfig, data: ArrayData, seed: int
) -> list[list[int]]:
    """The classes of each stage; one stage for all where they do not arrive in a stream.

    Args:
        benchmark: their order, and how a stream is cut.
        partition: whether there is a stream.
        data: all training samples, which may say when classes arrive.
        seed: of the run.
    """
    order = list(class_order(benchmark, data.y_train, seed, data.arrival))
    if partition.growth != "stream":
        return [order]
    cuts = itertools.accumulate(experience_sizes(benchmark, len(order)), initial=0)
    return [order[start:end] for start, end in itertools.pairwise(cuts)]


def number_of_clients(data: ArrayData, asked: int, config: PartitionConfig) -> int:
    """How many clients there are: as many as asked for, or as the data name.

    Args:
        data: may say who holds what.
        asked: 0 for as many as the data name.
        config: how samples are shared out.

    Raises:
        ConfigError: with ``partition=client``: the data do not say it, or name another number.
    """
    if config.name != GIVEN:
        return asked
    if data.clients is None:
        raise ConfigError(
            f"partition={GIVEN}: the data of benchmark '{data.name}' do not say who holds what; "
            "name the column in benchmark.columns.client, or choose another partition"
        )
    named = len(data.client_names)
    if asked not in (0, named):
        raise ConfigError(
            f"clients={asked}: the data name {named} ({', '.join(data.client_names[:5])}"
            f"{', ...' if named > 5 else ''}); leave clients out"
        )
    return named


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
        owned = assign(data.y_train, clients, config, seed, data.clients)
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
