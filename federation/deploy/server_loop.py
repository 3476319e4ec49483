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
from protocl.federation.server.resumable import LastingStrategy
from protocl.federation.wire.relayed_grids import QuorumGrid
from protocl.runner.folders import exclusive

logger = logging.getLogger(__name__)

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
}
"""Every key of the run's configuration and its default, besides two folders and the method's own.

``rounds`` counts those of earlier runs too. ``clients`` and ``parts`` say to how many the data of a
benchmark are dealt out, and in how many rounds; they stay, since nodes remember how many parts they
counted. ``wait`` is for ``min-clients`` to come online;
``quorum`` is the share of the clients asked whose answers are enough to close a round ``grace``
seconds later; ``deadline`` closes it in any case. All times are in seconds.
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
            what :class:`.Outputs` writes.

    Raises:
        ConfigError: a key is missing, a value does not fit, or another run keeps the folder in use.
    """
    values = {**RUN_CONFIG, **run_config}
    output = output_folder(values)
    output.mkdir(parents=True, exist_ok=True)
    with exclusive(output, patience=_PATIENCE):
        _serve(grid, strategy, values, output)


def _serve(grid: Grid, strategy: LastingStrategy, values: Mapping[str, Any], output: Path) -> None:
    if strategy.resume():
        logger.info("continuing after round %d", strategy.round)
    remaining = int(values["rounds"]) - strategy.round
    if remaining < 1:
        logger.info("all %d rounds are done; raise rounds to go on", strategy.round)
        return

    outputs = Outputs(output, strategy)

    def save(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        if number:  # it is called once before the first round
            outputs.write_round()
        return None

    outputs.write_all()
    try:
        strategy.start(
            QuorumGrid(grid, quorum=float(values["quorum"]), grace=float(values["grace"])),
            ArrayRecord(),
            num_rounds=remaining,
            timeout=float(values["deadline"]),
            evaluate_fn=save,
        )
    finally:
        outputs.write_all()


def output_folder(run_config: Mapping[str, Any]) -> Path:
    """The folder in which the server keeps its files.

    Raises:
        ConfigError: see :func:`.local_path`.
    """
    return local_path("output", run_config.get("output", ""))
