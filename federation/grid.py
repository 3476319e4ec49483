"""Where messages go: nodes inside this process, or behind a SuperLink with a deadline."""

from __future__ import annotations

import copy
import logging
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping

from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from protocl.federation.flower import act_as_server, content_bytes, name_message
from protocl.federation.ledger import Direction, Traffic

logger = logging.getLogger(__name__)

_FIRST_NODE = 1000
_CLIENT_RAISED = 2  # Flower's error code for a ClientApp that raised


class InProcessGrid(Grid):
    """Simulated nodes in this process, one after the other: no Ray, no ports, no second process.

    The same ServerApp, ClientApp and Strategy run on it as on a SuperLink, some 25 to 50 times
    faster than in Flower's Ray simulation for clients that are cheap, and under a debugger.

    Args:
        app: answers for every node.
        nodes: how many there are; node ``i`` has ``partition-id`` ``i``.
        run_config: configuration of the run, as ``flwr run --run-config`` gives it.
        isolate: give each node its own copy of a message, as the wire does; else nodes share it.
        lost: share of the replies that never arrive, in [0, 1].
        late: share of the replies that arrive with those of the next request, in [0, 1].
        seed: decides which.

    Attributes:
        online: nodes that can be reached; change it to let nodes leave, return or join late.
    """

    def __init__(
        self,
        app: ClientApp,
        nodes: int,
        *,
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
                node_config={"partition-id": i, "num-partitions": nodes},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for i in range(nodes)
        }
        self.online = set(self._contexts)
        self._replies: dict[str, Message] = {}
        self._delayed: dict[str, Message] = {}

    def set_run(self, run) -> None:  # type: ignore[no-untyped-def]
        """See :class:`flwr.serverapp.Grid`."""
        self._run = run

    @property
    def run(self):  # type: ignore[no-untyped-def]
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
    ) -> Iterator[Message]:
        """Replies to ``messages``, each made when it is asked for.

        Nothing is waited for, so the timeout has no effect.
        """
        self._release_delayed()
        for message in messages:
            yield from self.pull_messages([self._deliver(message)])

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
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(_CLIENT_RAISED, reason), reply_to=message)


class _Wrapper(Grid):
    """A grid that passes everything on to another one."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def set_run(self, run) -> None:  # type: ignore[no-untyped-def]
        """See :class:`flwr.serverapp.Grid`."""
        self.grid.set_run(run)

    @property
    def run(self):  # type: ignore[no-untyped-def]
        """See :class:`flwr.serverapp.Grid`."""
        return self.grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See :class:`flwr.serverapp.Grid`."""
        return self.grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """See :class:`flwr.serverapp.Grid`."""
        return self.grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See :class:`flwr.serverapp.Grid`."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See :class:`flwr.serverapp.Grid`."""
        return self.grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See :class:`flwr.serverapp.Grid`."""
        return self.grid.send_and_receive(messages, timeout=timeout)

    def collect_late(self) -> list[Message]:
        """Replies that came after their round was closed, where the other grid keeps them."""
        collect = getattr(self.grid, "collect_late", None)
        return [] if collect is None else list(collect())


class MeteredGrid(_Wrapper):
    """A grid that notes the bytes of every message, measured on its serialised records.

    Args:
        grid: what does the sending.
        traffic: where they are noted.

    Attributes:
        seconds: time that the measuring took.
    """

    def __init__(self, grid: Grid, traffic: Traffic) -> None:
        super().__init__(grid)
        self.traffic = traffic
        self.seconds = 0.0
        self._requests = 0

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send, wait, and note both, the replies as they are read."""
        sent = list(messages)
        self._requests += any(m.metadata.message_type == MessageType.TRAIN for m in sent)
        sizes: dict[int, int] = {}
        for message in sent:
            # A broadcast is one content object in many messages; it is measured once.
            key = id(message.content)
            if key not in sizes:
                sizes[key] = self._measure(message)
            self._note(message, message.metadata.dst_node_id, "down", sizes[key])
        for reply in super().send_and_receive(sent, timeout=timeout):
            self._note_reply(reply)
            yield reply

    def collect_late(self) -> list[Message]:
        """Late replies; they are noted under the round of their request."""
        replies = super().collect_late()
        for reply in replies:
            self._note_reply(reply)
        return replies

    def _note_reply(self, reply: Message) -> None:
        if reply.has_content():
            self._note(reply, reply.metadata.src_node_id, "up", self._measure(reply))

    def _measure(self, message: Message) -> int:
        start = time.perf_counter()
        size = content_bytes(message.content)
        self.seconds += time.perf_counter() - start
        return size

    def _note(self, message: Message, client: int, direction: Direction, size: int) -> None:
        # Flower's own strategies do not group their messages; they train once a round.
        number = int(message.metadata.group_id or self._requests)
        self.traffic.add(number, str(client), message.metadata.message_type, direction, size)


class QuorumGrid(_Wrapper):
    """A grid that does not wait for those who never answer.

    Flower's own ``send_and_receive`` polls every three seconds and waits for all replies; a node
    that was killed holds up everybody for nearly a minute. Replies that come later are kept.

    Args:
        grid: what does the sending.
        poll: seconds between two looks for replies; more where looking takes long, so that a fifth
            of the time at most goes into it.
        quorum: share of the nodes asked, in (0, 1], whose good answers are enough.
        grace: seconds to wait for the others from then on.
        stopped: set by another thread to end all waiting with a RuntimeError.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        poll: float = 0.2,
        quorum: float = 1.0,
        grace: float = 5.0,
        stopped: threading.Event | None = None,
    ) -> None:
        super().__init__(grid)
        self.poll = poll
        self.quorum = quorum
        self.grace = grace
        self._stopped = stopped or threading.Event()
        self._missing: set[str] = set()

    def get_node_ids(self) -> Iterable[int]:
        """See :class:`flwr.serverapp.Grid`."""
        self._require_running()
        return super().get_node_ids()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Replies that came until all did, the quorum and its grace, or the timeout."""
        waiting = {i for i in self.grid.push_messages(list(messages)) if i}
        needed = max(1, round(self.quorum * len(waiting)))
        replies: list[Message] = []
        end = float("inf") if timeout is None else time.monotonic() + timeout
        while waiting:
            start = time.monotonic()
            for reply in self.grid.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
            if sum(not reply.has_error() for reply in replies) >= needed:
                end = min(end, time.monotonic() + self.grace)
                needed = len(waiting) + len(replies) + 1  # the grace begins once
            now = time.monotonic()
            if not waiting or now >= end:
                break
            # A look takes as long as there are messages, and keeps the others from their work.
            self._stopped.wait(min(max(self.poll, 4 * (now - start)), end - now))
            self._require_running()
        if waiting:
            logger.warning("%d replies are missing; later ones are merged next round", len(waiting))
        self._missing |= waiting
        return replies

    def collect_late(self) -> list[Message]:
        """Replies that came after their round was closed; statistics can still be merged."""
        replies = list(self.grid.pull_messages(self._missing)) if self._missing else []
        self._missing -= {reply.metadata.reply_to_message_id for reply in replies}
        return replies

    def _require_running(self) -> None:
        if self._stopped.is_set():
            raise RuntimeError("the federation was stopped while its server waited")
