"""What a round costs by the number of clients: flat, and as a tree of edges.

``python -m protocl.federation.bench.tree``: 1,000, 10,000 and 100,000 clients of one server, and
1,000,000 clients of 1,000 edges, all in this process, at levels ``mean`` and ``shared``. Each
client encodes and sends the statistics of 20 samples of 4 classes in fixed point, 64 features wide,
as one of 100 that were computed beforehand. Each case runs in a process of its own, whose peak of
memory is that of the row. The own share is what encoding, reading, checking, merging and saving
take of the processor time, in the proportion of their seconds to all.
"""

from __future__ import annotations

import argparse
import gc
import logging
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from rich.console import Console

from protocl.bench.timing import thread_count
from protocl.federation.edges.limits import limits_of_edge, share_of
from protocl.federation.edges.simulated import SimulatedEdge, SimulatedEdges
from protocl.federation.runner.simulation import simulate
from protocl.federation.server.sampling import Options
from protocl.federation.server.strategy import FederatedPrototypes
from protocl.federation.wire.compat import quiet, without_round_reports
from protocl.federation.wire.grid import InProcessGrid
from protocl.federation.wire.limits import Limits
from protocl.federation.wire.messages import Contribution, encode
from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level

CASES = ((1_000, 0), (10_000, 0), (100_000, 0), (1_000_000, 1_000))
LEVELS: tuple[Level, ...] = ("mean", "shared")
WIDTH, CLASSES, SAMPLES, KINDS = 64, 4, 20, 100

HEAD = (
    "| clients | edges | level | contributions kept | s | s of CPU | own share, µs a client | "
    "peak MiB | MB up | MB up to the root |\n"
    "| ---: | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
)


@dataclass
class Clients:
    """Clients that have nothing to compute: each sends one of some memories, encoded anew.

    Attributes:
        empty: of their kind.
        seconds: that encoding took.
    """

    empty: PrototypeMemory
    seconds: float = 0.0
    memories: list[PrototypeMemory] = field(default_factory=list)

    def __post_init__(self) -> None:
        labels = torch.arange(SAMPLES) % CLASSES
        for kind in range(KINDS):
            features = torch.randn(SAMPLES, WIDTH, generator=torch.Generator().manual_seed(kind))
            self.memories.append(self.empty.empty_like().update(features, labels + kind % 7))

    def train(self, message: Message, context: Context) -> Message:
        """Send a first contribution."""
        number = int(context.node_config["partition-id"])
        start = time.perf_counter()
        one = Contribution(self.memories[number % KINDS], f"{number:032x}", 1, "full")
        arrays, header = encode(one)
        self.seconds += time.perf_counter() - start
        content = RecordDict({"arrays-0": arrays, "header-0": header})
        content["metrics"] = MetricRecord({"num-examples": SAMPLES})
        return Message(content, reply_to=message)

    def app(self) -> ClientApp:
        """Their ClientApp."""
        app = ClientApp()
        app.train()(self.train)
        return app


class ForgetfulEdge(SimulatedEdge):
    """An edge that lets go of its grid after the only round; its books stay.

    Attributes:
        own: seconds that its parts of the round took.
    """

    own = 0.0

    def train(self, message: Message, context: Context) -> Message:
        """See :class:`SimulatedEdge`."""
        reply = super().train(message, context)
        self.own = own_seconds(self.strategy)
        self.grid = InProcessGrid(ClientApp(), 0)
        return reply


def own_seconds(strategy: FederatedPrototypes) -> float:
    """What encoding, reading, checking, merging and saving took a server."""
    seconds = strategy.seconds
    return seconds.encode + seconds.decode + seconds.merge + seconds.save


def row(clients: int, edges: int, level: Level) -> str:
    """One round, as a row of the table; every client's samples must be in the sum."""
    empty = PrototypeMemory(WIDTH, level, exact=True, fingerprint="bench")
    # At level shared a contribution of 64 features takes 17 kB, as many as all else together.
    kept = level == "mean"
    options = Options(evaluate=0.0)
    their, everybody = Clients(empty), max(edges, 1)
    limits = limits_of_edge(Limits(), clients // everybody) if edges else Limits()
    root = FederatedPrototypes(
        empty, Options(evaluate=0.0, limits=limits), keep_contributions=kept, rows=edges > 0
    )
    app = their.app()

    def build(number: int) -> SimulatedEdge:
        own = share_of(number, edges, clients)
        grid = InProcessGrid(app, len(own), first=own.start)
        edge = FederatedPrototypes(empty, options, keep_contributions=kept)
        return ForgetfulEdge(edge, grid, root.traffic)

    tree = SimulatedEdges(build)
    began, worked = time.perf_counter(), time.process_time()
    simulate(root, tree.app() if edges else app, clients=edges or clients, rounds=1)
    wall, worked = time.perf_counter() - began, time.process_time() - worked
    if root.memory.total != SAMPLES * clients:
        raise ValueError(f"{root.memory.total} samples were merged; expected {SAMPLES * clients}")
    own = own_seconds(root) + their.seconds
    own += sum(edge.own for edge in tree.edges.values() if isinstance(edge, ForgetfulEdge))
    own *= worked / wall  # where others share the processor, each second is as much of it
    up = root.traffic.total("up")
    upper = sum(size for *_, name, _, way, size in _named(root) if way == "up")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        f"| {clients:,} | {edges or '-'} | {level} | {'yes' if kept else 'no'} | {wall:.1f} | "
        f"{worked:.1f} | {1e6 * own / clients:.0f} | {peak:,.0f} | {(up) / 1e6:,.1f} | "
        f"{upper / 1e6:,.1f} |"
    )


def _named(root: FederatedPrototypes) -> list[tuple[int, str, str, str, int]]:
    """Messages to and from the root itself."""
    return [row for row in root.traffic.rows if not row[1].startswith("clients of")]


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=1_000_000, help="clients of the largest case")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    console = Console(soft_wrap=True)
    if args.case:
        quiet()
        gc.freeze()  # what was imported, as the commands do
        with thread_count(1), without_round_reports():
            clients, edges, level = args.case
            console.print(row(int(clients), int(edges), level))
        return
    console.print(HEAD)
    for clients, edges in CASES:
        for level in LEVELS if clients <= args.most else ():
            words = [sys.executable, "-m", __spec__.name, "--case", str(clients), str(edges), level]
            line = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
            console.print(line)


if __name__ == "__main__":
    main()
