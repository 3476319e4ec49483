"""A whole federation on one machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result, Strategy

from protocl.errors import ConfigError
from protocl.federation.server.sampling import wait_for_nodes
from protocl.federation.wire.compat import quiet
from protocl.federation.wire.grid import InProcessGrid
from protocl.federation.wire.relayed_grids import MeteredGrid, QuorumGrid
from protocl.federation.wire.traffic import Traffic

Engine = Literal["in_process", "ray"]
AfterRound = Callable[[int, ArrayRecord], MetricRecord | None]


def simulate(
    strategy: Strategy,
    client_app: ClientApp,
    *,
    clients: int,
    rounds: int,
    engine: Engine = "in_process",
    initial: ArrayRecord | None = None,
    after_round: AfterRound | None = None,
    timeout: float = 3600.0,
    run_config: Mapping[str, str | int | float | bool] | None = None,
    grid: Grid | None = None,
    train_config: ConfigRecord | None = None,
    traffic: Traffic | None = None,
) -> Result:
    """Run ``rounds`` rounds of ``strategy`` with simulated clients.

    Args:
        strategy: any Flower strategy of the Message API.
        client_app: answers for every client; ``context.node_config["partition-id"]`` tells which.
        clients: how many there are.
        rounds: how many rounds.
        engine: ``"in_process"`` needs nothing else; ``"ray"`` is Flower's own simulation engine,
            with a process for each two CPUs (extra ``flwr[simulation]``). Under Ray what clients
            share in memory is copied, so their states must be on disk.
        initial: arrays that the strategy starts from.
        after_round: called before the first round (with 0) and after each.
        timeout: seconds after which a round is closed.
        run_config: given to every client's context (in process only).
        grid: use this one (in process only).
        train_config: sent to clients with every request to train.
        traffic: receives the bytes of every message; for strategies that do not measure themselves.

    Returns:
        Flower's result, with the metrics of every round.

    Raises:
        ConfigError: ``engine`` is unknown or not installed.
        AllFailedError: all clients failed in all rounds (of strategies that are measured).
        ValueError: there are no clients.

    Example:
        >>> from protocl.federation import ClientData, FederatedPrototypes, PrototypeClient
        >>> def load(context):  # client 0 has class 0, client 1 class 1, ...
        ...     number = int(context.node_config["partition-id"])
        ...     return ClientData([(torch.full((3, 2), float(number)), torch.tensor([number] * 3))])

        >>> empty = PrototypeMemory(2, exact=True)
        >>> strategy = FederatedPrototypes(empty)
        >>> result = simulate(strategy, PrototypeClient(load, empty).app(), clients=3, rounds=2)
        >>> result.train_metrics_clientapp[1]["merged"], result.train_metrics_clientapp[2]["merged"]
        (3, 0)
    """
    if clients < 1:
        raise ValueError(f"clients={clients}: expected at least 1")
    quiet()
    results: list[Result] = []

    def run(grid: Grid) -> None:
        where = grid if traffic is None else MeteredGrid(grid, traffic)
        results.append(
            strategy.start(
                where,
                ArrayRecord() if initial is None else initial,
                num_rounds=rounds,
                timeout=timeout,
                train_config=train_config,
                evaluate_fn=after_round,
            )
        )
        if isinstance(where, MeteredGrid):
            where.require_answers()

    if engine == "in_process":
        run(grid or InProcessGrid(client_app, clients, run_config=run_config))
    elif engine == "ray":
        server, stopped = ServerApp(), threading.Event()

        @server.main()
        def wait_and_run(grid: Grid, context: Context) -> None:
            where = QuorumGrid(grid, stopped=stopped)
            # Nodes are registered meanwhile; a round must not begin with those that happen to be.
            wait_for_nodes(where, clients, timeout, before="simulation", setting="clients")
            run(where)

        try:
            _run_ray(server, client_app, clients)
        finally:
            # Flower's thread of the server outlives an engine that failed or was interrupted.
            stopped.set()
    else:
        raise ConfigError(f"engine={engine}: expected in_process or ray")
    return results[0]


def _run_ray(server: ServerApp, client_app: ClientApp, clients: int) -> None:
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ConfigError("engine=ray needs Ray: pip install 'flwr[simulation]'") from error
    from flwr.simulation import run_simulation

    backend: dict[str, Any] = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"logging_level": "ERROR", "log_to_driver": False},
    }
    run_simulation(server, client_app, clients, backend_config=backend)
