"""Edges inside one process, each with clients of its own, in a federation that is a tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from flwr.app import ArrayRecord, Context, Message, MessageType
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from protocl.errors import ConfigError
from protocl.federation.config import FederationSetup, MethodConfig
from protocl.federation.edges.limits import limits_of_edge, share_of
from protocl.federation.edges.root import require_addable, root_strategy
from protocl.federation.edges.row import Holding, RowState, answer
from protocl.federation.methods.prototypes import PrototypesMethod
from protocl.federation.server.sampling import addressed, choose_nodes
from protocl.federation.server.strategy import FederatedPrototypes
from protocl.federation.wire.grid import InProcessGrid
from protocl.federation.wire.replies import (
    confusion_content,
    content_of,
    read_confusion,
    reading,
    sender,
)
from protocl.federation.wire.traffic import Traffic
from protocl.metrics.confusion import Confusion


class SimulatedEdge:
    """An edge, whose books are in memory.

    Args:
        strategy: of the edge as a server.
        grid: its clients.
        traffic: to which the bytes of its clients' messages are added.
        timeout: seconds after which its round is closed.

    Attributes:
        state: of the edge as a client.
    """

    def __init__(
        self, strategy: FederatedPrototypes, grid: Grid, traffic: Traffic, timeout: float = 3600.0
    ) -> None:
        self.strategy, self.grid = strategy, grid
        self.state = RowState()
        self._traffic, self._timeout = traffic, timeout

    def train(self, message: Message, context: Context) -> Message:
        """Run a round of its clients, and send what it has then."""
        number = int(message.metadata.group_id)
        self.strategy.round = number - 1  # rounds are the root's
        self.strategy.start(self.grid, ArrayRecord(), num_rounds=1, timeout=self._timeout)
        self._note_traffic(number, str(message.metadata.dst_node_id))
        row, merged = self.strategy.row, self.strategy.merged
        withdrawals = len(self.strategy.withdrawn)
        holding = Holding(
            row, dict(merged.names), withdrawals, merged.erasures, merged.memory.revision
        )  # fmt: skip
        return answer(message, context, self.state, holding)

    def evaluate(self, message: Message, context: Context) -> Message:
        """Have its clients classify with the root's memory, and add up what they say."""
        number, options = int(message.metadata.group_id), self.strategy.options
        nodes = choose_nodes(
            self.grid, number, options.evaluate,
            min_clients=options.min_clients, wait=options.wait, seed=options.seed,
        )  # fmt: skip
        content = message.content
        total = Confusion.empty()
        asked = [addressed(node, MessageType.EVALUATE, number, content) for node in nodes]
        for reply in self.grid.send_and_receive(asked, timeout=self._timeout):
            with reading(f"the evaluation of client {sender(reply)}"):
                total = total + read_confusion(content_of(reply), options.limits)
        return Message(confusion_content(total), reply_to=message)

    def _note_traffic(self, number: int, name: str) -> None:
        """One row for all clients, for there may be a million of them."""
        for direction in ("down", "up"):
            size = self.strategy.traffic.total(direction, number)
            self._traffic.add(number, f"clients of {name}", MessageType.TRAIN, direction, size)
        self.strategy.traffic.rows.clear()


class SimulatedEdges:
    """The ClientApp of all edges of a tree.

    Args:
        build: makes an edge of its number.
    """

    def __init__(self, build: Callable[[int], SimulatedEdge]) -> None:
        self._build = build
        self.edges: dict[int, SimulatedEdge] = {}

    def app(self) -> ClientApp:
        """See :class:`flwr.clientapp.ClientApp`."""
        app = ClientApp()
        app.train()(lambda message, context: self._edge(context).train(message, context))
        app.evaluate()(lambda message, context: self._edge(context).evaluate(message, context))
        return app

    def _edge(self, context: Context) -> SimulatedEdge:
        number = int(context.node_config["partition-id"])
        if number not in self.edges:
            self.edges[number] = self._build(number)
        return self.edges[number]


def build_tree(config: MethodConfig, setup: FederationSetup) -> PrototypesMethod:
    """A method whose clients are dealt out to ``setup.federation.edges`` edges.

    What looks at clients side by side does so at the edges; the root adds up what edges send.

    Raises:
        ConfigError: the method does not merge statistics that edges could add up.
    """
    federation = setup.federation
    edges, clients = federation.edges, federation.clients
    config = require_addable(config, edges)
    if edges > clients:
        raise ConfigError(f"edges={edges}: expected at most as many as clients={clients}")
    options = replace(
        setup.options(), participation=1.0, min_clients=1,
        evaluate=1.0 if federation.evaluate else 0.0,
        limits=limits_of_edge(setup.limits, len(share_of(0, edges, clients))),
    )  # fmt: skip
    method = config.build(setup)
    leaf = method.client_app
    method.strategy = root = root_strategy(method.strategy, options, setup.checkpoints)

    def build(number: int) -> SimulatedEdge:
        own = share_of(number, edges, clients)
        fewest = min(federation.min_clients, len(own))
        inner = replace(
            setup, federation=replace(federation, min_clients=fewest), checkpoints=None
        )  # fmt: skip
        grid = InProcessGrid(
            leaf, len(own), first=own.start, of=clients,
            lost=federation.lost, late=federation.late, seed=hash((setup.seed, number)),
        )  # fmt: skip
        return SimulatedEdge(config.build(inner).strategy, grid, root.traffic, federation.deadline)

    method.client_app = SimulatedEdges(build).app()
    return method
