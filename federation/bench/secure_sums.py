"""What secure sums of many parties cost, by scheme: time, messages, bytes.

``python -m protocl.federation.bench.secure_sums``: one round of the method ``protected`` with the
head ``lda`` (level ``shared``) on digits, all parties and the server in this process. A message is
one to a client or one answer.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from dataclasses import dataclass

from rich.console import Console

from protocl.federation.config.compose import load
from protocl.federation.runner.run import FederatedRun
from protocl.federation.secure.protocol.schemes import Graph, Pinned, Scheme
from protocl.federation.secure.strategy import ProtectedPrototypes
from protocl.runner.context import RunContext
from protocl.runner.folders import open_run

CASES = (
    ("true", 60), ("true", 120), ("pinned", 60), ("pinned", 120), ("graph", 120), ("graph", 1000),
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Of one round.

    Attributes:
        neighbours: that a party shares with.
        threshold: how many of them join its secrets.
        seconds: of processor time.
        messages: to clients, and their answers.
        megabytes: of all messages.
        samples: in the sum.
    """

    neighbours: int
    threshold: int
    seconds: float
    messages: int
    megabytes: float
    samples: int


def cost(scheme: str, parties: int) -> Cost:
    """The cost of a sum of ``parties`` parties under ``secure=scheme``."""
    words = ["federation=digits_secure", f"method.secure={scheme}", "method.head=lda"]
    with tempfile.TemporaryDirectory() as folder:
        (config,) = load([*words, "partition=iid", f"clients={parties}", f"output={folder}"])
        run = FederatedRun(RunContext("federation", config, open_run(config)))
        began = time.process_time()
        run.finish()
        seconds = time.process_time() - began
    strategy = run.method.strategy
    assert isinstance(strategy, ProtectedPrototypes)
    shares: Scheme = strategy.scheme
    rows = list(run.traffic)
    return Cost(
        shares.degree(parties), shares.threshold(parties), seconds, len(rows),
        sum(row[-1] for row in rows) / 1e6, strategy.memory.total,
    )  # fmt: skip


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[Pinned.name, Graph.name, "true"])
    only = parser.parse_args().only
    logging.disable(logging.WARNING)
    console = Console()
    console.print("| secure | parties | neighbours | threshold | s of CPU | messages | MB |")
    console.print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for scheme, parties in CASES:
        if only in (None, scheme):
            c = cost(scheme, parties)
            console.print(
                f"| {scheme} | {parties:,} | {c.neighbours} | {c.threshold} | {c.seconds:.1f} | "
                f"{c.messages:,} | {c.megabytes:.1f} |"
            )


if __name__ == "__main__":
    main()
