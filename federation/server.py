"""The server of a deployed federation."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid

from protocl.errors import ConfigError, as_config_error
from protocl.federation.grid import QuorumGrid
from protocl.federation.options import Options
from protocl.federation.strategy import FederatedPrototypes
from protocl.memory import PrototypeMemory
from protocl.runs import exclusive
from protocl.storage import atomic_write

logger = logging.getLogger(__name__)

RUN_CONFIG: dict[str, str | int | float | bool] = {
    "rounds": 3,
    "participation": 1.0,
    "min-clients": 2,
    "wait": 600.0,
    "deadline": 600.0,
    "quorum": 1.0,
    "grace": 5.0,
    "evaluate": 1.0,
    "head": "nearest_mean",
    "exact": True,
    "precision": "exact",
    "keep-contributions": True,
}
"""Every key of the run's configuration and its default, besides the two folders.

``rounds`` counts those of earlier runs too. ``wait`` is for ``min-clients`` to come online;
``quorum`` is the share of the clients asked whose answers are enough to close a round ``grace``
seconds later; ``deadline`` closes it in any case. All times are in seconds.
"""

_PATIENCE = 60.0
"""Seconds to wait for the server of a run before.

When a SuperLink dies, the ServerApp that it had started outlives it: told to end, it first tries to
reach a SuperLink again, and reaches the one that was started in its place. A run that is begun at
once would find the folder still in use.
"""


def serve(grid: Grid, empty: PrototypeMemory, run_config: Mapping[str, Any]) -> FederatedPrototypes:
    """Run the rounds that are missing to ``rounds``, saving everything after each.

    A run that ended early (a SuperLink that is restarted fails the run in progress) is continued by
    starting another one: the merged memory, the ledger and what is settled with each client come
    from the folder ``output``.

    Args:
        grid: of the ServerApp.
        empty: what is merged.
        run_config: :data:`RUN_CONFIG`, and ``output``: an absolute folder on the server, which
            receives ``memory.safetensors``, ``ledger.jsonl``, ``traffic.csv``, ``rounds.json``.

    Returns:
        The strategy after the last round.

    Raises:
        ConfigError: a key is missing, a value does not fit, or another run keeps the folder in use.
    """
    values = {**RUN_CONFIG, **run_config}
    output = _output(values)
    output.mkdir(parents=True, exist_ok=True)
    with exclusive(output, patience=_PATIENCE):
        return _serve(grid, empty, values, output)


def _serve(
    grid: Grid, empty: PrototypeMemory, values: Mapping[str, Any], output: Path
) -> FederatedPrototypes:
    strategy = _strategy(empty, values, output)
    if strategy.resume():
        logger.info("continuing after round %d", strategy.round)
    remaining = int(values["rounds"]) - strategy.round
    if remaining < 1:
        logger.info("all %d rounds are done; raise rounds to go on", strategy.round)
        return strategy

    def save(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        strategy.memory.save(output / "memory.safetensors")
        strategy.merged.ledger.save(output / "ledger.jsonl")
        strategy.traffic.save(output / "traffic.csv")
        atomic_write(output / "rounds.json", json.dumps(_rounds(strategy), indent=1))
        return None

    strategy.start(
        QuorumGrid(grid, quorum=float(values["quorum"]), grace=float(values["grace"])),
        ArrayRecord(),
        num_rounds=remaining,
        timeout=float(values["deadline"]),
        evaluate_fn=save,
    )
    return strategy


def _output(values: Mapping[str, Any]) -> Path:
    folder = Path(str(values.get("output", "")))
    if not folder.is_absolute():
        raise ConfigError(
            f"output='{folder}': expected an absolute folder; the ServerApp runs in the folder in "
            "which the SuperLink was started"
        )
    return folder


def _strategy(
    empty: PrototypeMemory, values: Mapping[str, Any], output: Path
) -> FederatedPrototypes:
    with as_config_error():
        options = Options(
            participation=float(values["participation"]),
            min_clients=int(values["min-clients"]),
            wait=float(values["wait"]),
            evaluate=float(values["evaluate"]),
        )
    return FederatedPrototypes(
        empty,
        options,
        keep_contributions=bool(values["keep-contributions"]),
        checkpoints=output / "checkpoint",
    )


def _rounds(strategy: FederatedPrototypes) -> list[dict[str, Any]]:
    return [
        {
            "round": number,
            **strategy.merged.ledger.outcomes(number),
            "accuracy": confusion.accuracy if (confusion := strategy.evaluations.get(number))
            else None,
            "bytes-up": strategy.traffic.total("up", number),
            "bytes-down": strategy.traffic.total("down", number),
        }
        for number in range(1, strategy.round + 1)
    ]  # fmt: skip
