"""A federated method as it runs in a deployment: server and nodes build it from the run's settings.

The settings are those of ``protocl federate``, ``method.head`` and the like, in the configuration
of the Flower app (:mod:`protocl.federation.deploy.settings`). A method is made of them by the same
code as in a simulation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import nn

from protocl.backbones import fingerprint
from protocl.federation.client.client import Loader
from protocl.federation.client.state import StatesOnDisk
from protocl.federation.config import FederateConfig, FederationSetup, Method
from protocl.federation.config.compose import require_deployable
from protocl.federation.deploy.places import local_path
from protocl.federation.deploy.server_loop import NO_EDGE, RUN_CONFIG, output_folder, serve
from protocl.federation.deploy.settings import of_task, own_settings, read_config
from protocl.federation.edges.files import EdgeFolder
from protocl.federation.edges.limits import limits_of_edge
from protocl.federation.edges.node import EdgeNode
from protocl.federation.edges.root import require_addable, root_strategy
from protocl.federation.secure.protocol.identity import public_key
from protocl.federation.server.resumable import LastingStrategy
from protocl.federation.server.strategy import FederatedPrototypes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """The task of a federation: data, model and head, the same on the server and on every node.

    Attributes:
        load: gives a node its own data: features, or samples with ``method.distribute=true``.
        backbone: makes the frozen feature extractor, whose fingerprint all must share.
        feature_dim: width ``D`` of the features.
        n_classes: class ids are below it. Only ``method=protected`` has to know them beforehand.
        class_names: of all classes, where nodes share them by name.
    """

    load: Loader
    backbone: Callable[[], nn.Module]
    feature_dim: int
    n_classes: int
    class_names: Sequence[str] = ()


NewTask = Callable[[FederateConfig], Task]
"""Makes the task of the settings of a run, which the simulation had as well."""


def client_app(task: Task | NewTask) -> ClientApp:
    """The ClientApp of a node.

    What must outlive its processes lies in the folder ``client-state`` of the run's configuration,
    or ``state`` of the node's; see :func:`.local_path`. A node's configuration may have settings of
    its own in place of the run's: ``benchmark-path``.
    """
    return _DeployedClient(task)


def server_app(task: Task | NewTask) -> ServerApp:
    """The ServerApp: :func:`.server_loop.serve` with the method of the run."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        config = context.run_config
        serve(grid, build_strategy(task, config), config)

    return app


def build_strategy(task: Task | NewTask, run_config: Mapping[str, Any]) -> LastingStrategy:
    """The server's side: of a root, of an edge, or of one server for all.

    Raises:
        ConfigError: as :func:`build_method`, or the method cannot be that of a tree.
    """
    values = {**RUN_CONFIG, **run_config}
    method = build_method(task, values, output_folder(values))
    strategy = cast(LastingStrategy, method.strategy)
    edges = int(values["edges"])
    if not edges and values["edge"] == NO_EDGE:
        return strategy
    require_addable(read_config(values).method, edges)
    assert isinstance(strategy, FederatedPrototypes)
    if values["edge"] != NO_EDGE:
        key = EdgeFolder(output_folder(values), str(values["edge"])).key
        logger.info("public key of edge %s: %s", values["edge"], public_key(key).hex())
        return strategy
    each = -(-int(values["clients"]) // edges)
    limits = limits_of_edge(strategy.options.limits, each)
    return root_strategy(
        strategy, replace(strategy.options, limits=limits), output_folder(values) / "checkpoint"
    )


def build_method(task: Task | NewTask, run_config: Mapping[str, Any], folder: Path) -> Method:
    """The method that a run's configuration asks for.

    Args:
        task: what is learned, or what makes it of the run's settings.
        run_config: of the Flower app; see :data:`protocl.federation.deploy.server_loop.RUN_CONFIG`.
        folder: for what must outlive the process: of the server, or of the node.

    Raises:
        ConfigError: an unknown key or name, a value that does not fit, or a method that cannot be
            deployed.
    """
    values = {**RUN_CONFIG, **run_config}
    config = read_config(values)
    require_deployable(config.method)
    task = own_task(task, config, values)
    backbone = task.backbone()
    return config.method.build(
        FederationSetup(
            load=task.load,
            backbone=backbone,
            feature_dim=task.feature_dim,
            n_classes=task.n_classes,
            fingerprint=fingerprint(backbone),
            seed=config.seed,
            federation=config.federation,
            states=StatesOnDisk(folder),
            checkpoints=folder / "checkpoint",
            wait=float(values["wait"]),
            keep=folder,
            class_names=task.class_names,
            limits=config.limits,
            door=None if values["edge"] == NO_EDGE else EdgeFolder(folder, str(values["edge"])),
        )
    )


def own_task(task: Task | NewTask, config: FederateConfig, run_config: Mapping[str, Any]) -> Task:
    """The task of a run: as it is, or made of the run's settings."""
    return task if isinstance(task, Task) else task(of_task(config, run_config))


class _DeployedClient(ClientApp):
    """Builds the method that the run asks for, which is not known before a message comes."""

    def __init__(self, task: Task | NewTask) -> None:
        super().__init__()
        self.task = task

    def __call__(self, message: Message, context: Context) -> Message:
        config = {**context.run_config, **own_settings(context.node_config)}
        if int(config.get("edges", 0)):
            place = local_path("edge-output", context.node_config.get("edge-output", ""))
            return EdgeNode(EdgeFolder(place))(message, context)
        place = context.node_config.get("state", config["client-state"])
        folder = local_path("client-state", place)
        return build_method(self.task, config, folder).client_app(message, context)
