"""The server of a deployed federation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid

from protocl.federation.deploy.outputs import Outputs
from protocl.federation.deploy.places import local_path
from protocl.federation.edges.files import EdgeFolder
from protocl.federation.operations.blocking import BlockingGrid, BlockList
from protocl.federation.operations.json_log import json_log
from protocl.federation.operations.metrics import ServerMetrics, served_metrics
from protocl.federation.server.resumable import KeepsBooks, LastingStrategy
from protocl.federation.server.strategy import FederatedPrototypes
from protocl.federation.wire.relayed_grids import QuorumGrid
from protocl.runner.folders import exclusive

logger = logging.getLogger(__name__)

NO_EDGE = "none"
"""Name of the edge that a server is which is none."""

RUN_CONFIG: dict[str, str | int | float | bool] = {
    "rounds": 5,
    "clients": 10,
    "parts": 5,
    "seed": 0,
    "participation": 1.0,
    "min-clients": 2,
    "wait": 600.0,
    "deadline": 600.0,
    "quorum": 1.0,
    "grace": 5.0,
    "evaluate": 1.0,
    "edge": NO_EDGE,
    "edges": 0,
    "metrics-port": 0,
    "log-json": False,
}
"""Every key of the run's configuration and its default, besides two folders and the method's own.

``rounds`` counts those of earlier runs too. ``clients`` and ``parts`` say to how many the data of a
benchmark are dealt out, and in how many rounds; they stay, since nodes remember how many parts they
counted. ``wait`` is for ``min-clients`` to come online;
``quorum`` is the share of the clients asked whose answers are enough to close a round ``grace``
seconds later; ``deadline`` closes it in any case. All times are in seconds. ``edge`` is the name of
an edge of a tree, ``edges`` how many a root has. ``metrics-port`` serves metrics on this machine, 0
none; ``log-json`` writes ``log.jsonl``.
"""

_PATIENCE = 60.0
"""Seconds to wait for the server of a run before.

When a SuperLink dies, the ServerApp that it had started outlives it: told to end, it first tries to
reach a SuperLink again, and reaches the one that was started in its place. A run that is begun at
once would find the folder still in use.
"""


def serve(grid: Grid, strategy: LastingStrategy, run_config: Mapping[str, Any]) -> None:
    """Run the rounds that are missing to ``rounds``, saving everything after each.

    A run that ended early (a SuperLink that is restarted fails the run in progress) is continued by
    starting another one: the merged memory, the ledger and what is settled with each client come
    from the strategy's checkpoints.

    Args:
        grid: of the ServerApp.
        strategy: what is run.
        run_config: :data:`RUN_CONFIG`, and ``output``: a folder on the server, which receives
            what :class:`.Outputs` writes; of an edge what its node sends upwards as well.

    Raises:
        ConfigError: a key is missing, a value does not fit, or another run keeps the folder in use.
    """
    values = {**RUN_CONFIG, **run_config}
    output = output_folder(values)
    output.mkdir(parents=True, exist_ok=True)
    log = output / "log.jsonl" if values["log-json"] else None
    with (
        exclusive(output, patience=_PATIENCE),
        json_log(log),
        served_metrics(int(values["metrics-port"])) as metrics,
    ):
        _serve(grid, strategy, values, output, metrics)


def _serve(
    grid: Grid, strategy: LastingStrategy, values: Mapping[str, Any], output: Path,
    metrics: ServerMetrics,
) -> None:  # fmt: skip
    if strategy.resume():
        logger.info("continuing after round %d", strategy.round)
    outputs = Outputs(output, strategy)
    remaining = int(values["rounds"]) - strategy.round
    if remaining < 1:
        logger.info("all %d rounds are done; raise rounds to go on", strategy.round)
        if isinstance(strategy, KeepsBooks):
            with strategy.writing():
                strategy.heed()
        _leave_row(strategy, values, output)
        outputs.write_all()
        return

    quorum = QuorumGrid(grid, quorum=float(values["quorum"]), grace=float(values["grace"]))

    def save(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        if number:  # it is called once before the first round
            outputs.write_round()
        _leave_row(strategy, values, output)
        metrics.update(strategy, quorum.missing)
        fields = {"round": strategy.round, **strategy.outcome(strategy.round)}
        logger.info("round %d is saved", strategy.round, extra={"fields": fields})
        return None

    outputs.write_all()
    try:
        strategy.start(
            BlockingGrid(quorum, BlockList(output)),
            ArrayRecord(),
            num_rounds=remaining,
            timeout=float(values["deadline"]),
            evaluate_fn=save,
        )
        _leave_row(strategy, values, output)  # without what was asked for since the last round
    finally:
        outputs.write_all()


def _leave_row(strategy: LastingStrategy, values: Mapping[str, Any], output: Path) -> None:
    """Where this is an edge, leave its row for the root."""
    if values["edge"] != NO_EDGE and isinstance(strategy, FederatedPrototypes):
        EdgeFolder(output, str(values["edge"])).leave(strategy)


def output_folder(run_config: Mapping[str, Any]) -> Path:
    """The folder in which the server keeps its files.

    Raises:
        ConfigError: see :func:`.local_path`.
    """
    return local_path("output", run_config.get("output", ""))
