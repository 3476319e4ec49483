"""Where the time of a round with many clients goes (``protocl bench federation``)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Literal

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord

from protocl.bench.comparison import Size, SpeedComparison
from protocl.bench.peak_memory import MIB, PeakMeter
from protocl.bench.timing import thread_count
from protocl.federation.client.client import ClientData, PrototypeClient
from protocl.federation.runner.simulation import simulate
from protocl.federation.server.sampling import Options
from protocl.federation.server.strategy import FederatedPrototypes
from protocl.federation.wire.compat import without_round_reports
from protocl.federation.wire.messages import Contribution
from protocl.memory import PrototypeMemory

TARGET = 0.1
"""Share of a round that encoding, decoding, checking and merging may take together."""

_ROUNDS = 2
_SAMPLES, _CLASSES_EACH = 50, 10


def measure(size: Size) -> Iterator[SpeedComparison]:
    """1,000 and 10,000 clients inside this process."""
    for clients in (1_000, 10_000) if size.samples >= 10_000 else (20,):
        yield from _rows(size, clients)


class SyntheticData:
    """Fifty samples of ten of the classes for each client and round; every hundredth has the same.

    Args:
        size: width and number of classes.
    """

    def __init__(self, size: Size) -> None:
        self.size = size
        self._known: dict[int, ClientData] = {}

    def __call__(self, context: Context) -> ClientData:
        """The data of the client that ``context`` describes."""
        kind = int(context.node_config["partition-id"]) % 100
        if kind not in self._known:
            shape = (_ROUNDS, _SAMPLES, self.size.width)
            features = torch.randn(shape, generator=torch.Generator().manual_seed(kind))
            labels = (torch.arange(_SAMPLES) % _CLASSES_EACH + kind) % self.size.classes
            self._known[kind] = ClientData([(x, labels) for x in features])
        return self._known[kind]


class TimedClient(PrototypeClient):
    """A client that knows how long its parts took, where it runs in the same process.

    Attributes:
        seconds: of everything, and of encoding.
    """

    def __init__(self, load: SyntheticData, empty: PrototypeMemory) -> None:
        super().__init__(load, empty)
        self.seconds = {"all": 0.0, "encode": 0.0}

    def train(self, message: Message, context: Context) -> Message:
        """See :class:`PrototypeClient`."""
        start = time.perf_counter()
        reply = super().train(message, context)
        self.seconds["all"] += time.perf_counter() - start
        return reply

    def packed(self, contribution: Contribution) -> tuple[ArrayRecord, ConfigRecord]:
        """See :class:`PrototypeClient`."""
        start = time.perf_counter()
        records = super().packed(contribution)
        self.seconds["encode"] += time.perf_counter() - start
        return records


def _rows(size: Size, clients: int) -> Iterator[SpeedComparison]:
    empty = PrototypeMemory(size.width, exact=True, fingerprint="bench")
    strategy = FederatedPrototypes(empty, Options(evaluate=0.0, min_clients=clients))
    ends: list[tuple[float, float]] = []

    def note(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        ends.append((time.perf_counter(), time.process_time()))
        return None

    # Clients are many and small: threads of torch would only wait for one another.
    with thread_count(1), without_round_reports(), PeakMeter() as meter:
        client = TimedClient(SyntheticData(size), empty)
        simulate(strategy, client.app(), clients=clients, rounds=_ROUNDS, after_round=note)
    expected = _ROUNDS * _SAMPLES * clients
    if strategy.memory.total != expected:
        raise ValueError(f"{strategy.memory.total} samples were merged; expected {expected}")
    rounds, processor = (after - before for before, after in zip(ends[0], ends[-1], strict=True))
    for part, seconds, target in _parts(strategy, client, rounds):
        yield SpeedComparison(
            case=f"{part}; {clients} clients of {_CLASSES_EACH} classes x {size.width}",
            peer_name="the whole round",
            ours=seconds / _ROUNDS,
            peer=rounds / _ROUNDS,
            kind="share",
            target=target,
            threads=1,
        )
    quantities: tuple[tuple[str, float, Literal["s", "MiB"]], ...] = (
        ("CPU time of a round in this process", processor / _ROUNDS, "s"),
        (f"growth of this process over {_ROUNDS} rounds", meter.rise / MIB, "MiB"),
    )
    for what, amount, unit in quantities:
        yield SpeedComparison(
            case=f"{what}; {clients} clients", peer_name="-", ours=amount, peer=None,
            kind="limit", target=None, threads=1, unit=unit,
        )  # fmt: skip


def _parts(
    strategy: FederatedPrototypes, client: TimedClient, rounds: float
) -> Iterator[tuple[str, float, float | None]]:
    """Name, seconds of all rounds, and target of each part."""
    server, clients = strategy.seconds, client.seconds
    ours = server.encode + server.decode + server.merge + clients["encode"]
    other = rounds - ours - server.measure - (clients["all"] - clients["encode"])
    yield "encode, decode, check, merge", ours, TARGET
    yield "of these: encode, on the clients", clients["encode"], None
    yield "of these: decode and check", server.decode, None
    yield "of these: merge and ledger", server.merge, None
    yield "counting bytes", server.measure, None
    yield "clients: data, sums, state", clients["all"] - clients["encode"], None
    yield "Flower: messages and records", other, None
