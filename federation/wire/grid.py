"""Simulated nodes inside this process."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from protocl.federation.wire.compat import (
    Run,
    act_as_server,
    failed_reply,
    name_message,
)

logger = logging.getLogger(__name__)

_FIRST_NODE = 1000


class InProcessGrid(Grid):
    """Simulated nodes in this process, one after the other: no Ray, no ports, no second process.

    The same ServerApp, ClientApp and Strategy run on it as on a SuperLink, some 25 to 50 times
    faster than in Flower's Ray simulation for clients that are cheap, and under a debugger.

    Args:
        app: answers for every node.
        nodes: how many there are; node ``i`` has ``partition-id`` ``first + i``.
        first: see there.
        of: ``num-partitions`` that they are told; as many as there are nodes by default.
        run_config: configuration of the run, as ``flwr run --run-config`` gives it.
        isolate: give each node its own copy of a message, as the wire does; else nodes share it.
        lost: share of the replies that never arrive, in [0, 1].
        late: share of the replies that arrive with those of the next request, in [0, 1].
        seed: decides which.

    Attributes:
        online: nodes that can be reached; change it to let nodes leave, return or join late.

    Example:
        >>> from flwr.clientapp import ClientApp
        >>> grid = InProcessGrid(ClientApp(), nodes=3)
        >>> len(list(grid.get_node_ids()))
        3
    """

    def __init__(
        self,
        app: ClientApp,
        nodes: int,
        *,
        first: int = 0,
        of: int | None = None,
        run_config: Mapping[str, str | int | float | bool] | None = None,
        isolate: bool = False,
        lost: float = 0.0,
        late: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.app = app
        self.isolate = isolate
        self.lost = lost
        self.late = late
        self._run = act_as_server()
        self._random = random.Random(seed)
        self._contexts = {
            _FIRST_NODE + i: Context(
                run_id=self._run.run_id,
                node_id=_FIRST_NODE + i,
                node_config={"partition-id": i, "num-partitions": nodes if of is None else of},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for i in range(first, first + nodes)
        }
        self.online = set(self._contexts)
        self._replies: dict[str, Message] = {}
        self._delayed: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """See :class:`flwr.serverapp.Grid`."""
        if not isinstance(run, Run):
            raise TypeError(f"run={run!r:.80}: expected a {Run.__module__}.Run")
        self._run = run

    @property
    def run(self) -> Any:
        """See :class:`flwr.serverapp.Grid`."""
        return self._run

    def get_node_ids(self) -> list[int]:
        """Nodes online, ascending."""
        return sorted(self.online)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See :class:`flwr.serverapp.Grid`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Have every node answer at once."""
        self._release_delayed()
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies that have arrived, each once."""
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Replies to ``messages``; nothing is waited for, so the timeout has no effect."""
        return self.pull_messages(self.push_messages(messages))

    def collect_late(self) -> list[Message]:
        """Replies that arrived after their request was closed."""
        return self.pull_messages(list(self._replies))

    def _release_delayed(self) -> None:
        self._replies.update(self._delayed)
        self._delayed = {}

    def _deliver(self, message: Message) -> str:
        """Have one node answer; the id of the message."""
        name_message(message, f"{self._random.getrandbits(128):032x}")
        name = message.metadata.message_id
        if message.metadata.dst_node_id not in self.online:
            return name
        reply = self._answer(message)
        fate = self._random.random()
        if fate >= self.lost + self.late:
            self._replies[name] = reply
        elif fate >= self.lost:
            self._delayed[name] = reply
        return name

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        if self.isolate:
            message = copy.deepcopy(message)
        try:
            return self.app(message, self._contexts[node])
        except Exception as error:
            # The boundary to a user's code: Flower too turns whatever a client raises into a reply.
            logger.debug("node %d raised", node, exc_info=True)
            return failed_reply(message, f"{type(error).__name__}: {error}")
