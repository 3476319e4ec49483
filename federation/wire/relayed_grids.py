"""Grids that do something more with the messages that they pass on to another grid."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from protocl.errors import AllFailedError
from protocl.federation.wire.compat import CONNECTION_ERRORS, content_bytes, failed_reply
from protocl.federation.wire.replies import describe, reading
from protocl.federation.wire.traffic import Traffic

logger = logging.getLogger(__name__)

_LONGEST_REASON = 500  # characters
_DIGITS = 15  # of a round's number that a client may have made up


class GridWrapper(Grid):
    """A grid that passes everything on to another one."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def set_run(self, run: Any) -> None:
        """See :class:`flwr.serverapp.Grid`."""
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
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


class MeteredGrid(GridWrapper):
    """A grid that notes the bytes of every message, measured on its serialised records.

    Args:
        grid: what does the sending.
        traffic: where they are noted.
        lets_go: empty the list of replies when the next messages are sent; Flower keeps it until
            they are answered, and the replies of two rounds at once.

    Attributes:
        seconds: time that the measuring took.
        answers: replies that came and said of no error.
        complaints: reason -> how many replies said that their client failed for it.
    """

    def __init__(self, grid: Grid, traffic: Traffic, *, lets_go: bool = False) -> None:
        super().__init__(grid)
        self.traffic, self._lets_go = traffic, lets_go
        self.seconds = 0.0
        self.answers = 0
        self.complaints: Counter[str] = Counter()
        self._rounds = 0
        self._asked: dict[tuple[int, str], int] = {}
        self._last: list[Message] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages, wait for the replies, and note the bytes of both."""
        self._last.clear()
        sent = list(messages)
        self._rounds += any(m.metadata.message_type == MessageType.TRAIN for m in sent)
        sizes: dict[int, int] = {}
        for message in sent:
            # A broadcast is one content object in many messages; it is measured once.
            key = id(message.content)
            if key not in sizes:
                sizes[key] = self._measure(message)
            self._note_request(message, sizes[key])
        replies = list(super().send_and_receive(sent, timeout=timeout))
        for reply in replies:
            self._note_reply(reply)
        if self._lets_go:
            self._last = replies
        return replies

    def collect_late(self) -> list[Message]:
        """Late replies; they are noted under the round of their request."""
        replies = super().collect_late()
        for reply in replies:
            self._note_reply(reply)
        return replies

    def require_answers(self) -> None:
        """Refuse to call it a success where clients were asked, and all failed every time.

        Raises:
            AllFailedError: quotes what they said.
        """
        if self.complaints and not self.answers:
            (reason, number), *others = self.complaints.most_common()
            also = f", and {len(others)} other reasons" if others else ""
            raise AllFailedError(
                f"all clients failed in all rounds; {number} times: {reason}{also}"
            )

    def _note_request(self, message: Message, size: int) -> None:
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        # Flower's own strategies do not number their groups; they train once a round.
        group = message.metadata.group_id
        number = int(group) if group.isdecimal() else self._rounds
        self._asked[node, kind] = number
        self.traffic.add(number, str(node), kind, "down", size)

    def _note_reply(self, reply: Message) -> None:
        """Note a reply under the round and kind of a request, whatever it says of itself."""
        if reply.has_error():
            self.complaints[f"{reply.error.reason}"[:_LONGEST_REASON]] += 1
        if not reply.has_content():
            return
        node, kind = reply.metadata.src_node_id, reply.metadata.message_type
        number = self._asked.get((node, kind))
        if number is None:
            logger.warning("client %d answers as to '%.40s', which it was not asked", node, kind)
            number, kind = self._rounds, "unasked"
        elif (claimed := reply.metadata.group_id) != str(number) and claimed.isdecimal():
            # Late, by as many rounds as there were since.
            number = min(number, int(claimed[:_DIGITS]))
        with reading(f"the size of what client {node} sent"):
            self.traffic.add(number, str(node), kind, "up", self._measure(reply))
            self.answers += 1

    def _measure(self, message: Message) -> int:
        start = time.perf_counter()
        size = content_bytes(message.content)
        self.seconds += time.perf_counter() - start
        return size


class QuorumGrid(GridWrapper):
    """A grid that does not wait for those who never answer.

    Flower's own ``send_and_receive`` polls every three seconds and waits for all replies; a node
    that was killed holds up everybody for nearly a minute. Replies that come later are kept. A
    reply that Flower cannot read is one of a client that failed.

    Args:
        grid: what does the sending.
        poll: seconds between two looks for replies; more where looking takes long, so that a fifth
            of the time at most goes into it.
        quorum: share of the nodes asked, in (0, 1], whose good answers are enough.
        grace: seconds to wait for the others from then on.
        stopped: set by another thread to end all waiting with a RuntimeError.

    Example:
        >>> from flwr.clientapp import ClientApp
        >>> from protocl.federation import InProcessGrid
        >>> len(list(QuorumGrid(InProcessGrid(ClientApp(), nodes=3)).get_node_ids()))
        3
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
        self._missing: dict[str, Message] = {}
        self._one_by_one = False

    @property
    def missing(self) -> int:
        """Replies that were asked for and have not come."""
        return len(self._missing)

    def get_node_ids(self) -> Iterable[int]:
        """See :class:`flwr.serverapp.Grid`."""
        self._require_running()
        return super().get_node_ids()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Replies that came until all did, the quorum and its grace, or the timeout."""
        sent = list(messages)
        names = self.grid.push_messages(sent)
        waiting = {name: message for name, message in zip(names, sent, strict=False) if name}
        needed = max(1, round(self.quorum * len(waiting)))
        replies: list[Message] = []
        end = float("inf") if timeout is None else time.monotonic() + timeout
        while waiting:
            start = time.monotonic()
            replies += self._pull(waiting)
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
        return self._pull(self._missing) if self._missing else []

    def _pull(self, waiting: dict[str, Message]) -> list[Message]:
        """The replies that are there; they are no longer waited for."""
        if self._one_by_one:
            replies = [reply for name in list(waiting) for reply in self._pull_one(waiting[name])]
        else:
            try:
                replies = list(self.grid.pull_messages(list(waiting)))
            except CONNECTION_ERRORS:
                raise
            except Exception as error:
                # Some of the others may be gone with it; their clients send them again.
                logger.warning("a reply cannot be read: %s", describe(error))
                self._one_by_one = True
                return self._pull(waiting)
        for reply in replies:
            waiting.pop(reply.metadata.reply_to_message_id, None)
        return replies

    def _pull_one(self, request: Message) -> list[Message]:
        try:
            return list(self.grid.pull_messages([request.metadata.message_id]))
        except CONNECTION_ERRORS:
            raise
        except Exception as error:
            return [failed_reply(request, f"its reply cannot be read: {describe(error)}")]

    def _require_running(self) -> None:
        if self._stopped.is_set():
            raise RuntimeError("the federation was stopped while its server waited")
