"""From the replies of clients to the merged memory: checked, screened, merged once, noted."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata

from protocl.federation.server.state import MergedMemory
from protocl.federation.wire.messages import Contribution, MessageReader, Received
from protocl.federation.wire.replies import describe, read_headers, sender, storable, who_failed
from protocl.federation.wire.traffic import Entry
from protocl.federation.wire.validation import LONGEST_LIFE, RejectedError

logger = logging.getLogger(__name__)

Verdicts = Callable[[Sequence[Contribution]], Sequence[str | None]]
"""For each contribution of a round None to accept it, or the reason why not."""


class Door(Protocol):
    """How an edge meets clients that come from other edges."""

    @property
    def name(self) -> str:
        """Of the edge."""

    def __call__(self, received: Received) -> Received:
        """A contribution, with the number of the move if its release is good.

        Raises:
            RejectedError: it is not.
        """


@dataclass
class Seconds:
    """Where the server's own time went, in seconds, over all rounds.

    Attributes:
        encode, decode, merge, save: parts of a round; ``decode`` includes validation.
        measure: counting the bytes of messages.
    """

    encode: float = 0.0
    decode: float = 0.0
    merge: float = 0.0
    save: float = 0.0
    measure: float = 0.0


class _Asked(NamedTuple):
    """A request without what was in it."""

    metadata: Metadata


class _Unread(NamedTuple):
    client: str
    arrays: ArrayRecord
    header: ConfigRecord
    size: int


@dataclass
class _Arrival:
    client: str
    received: Received
    size: int


class Intake:
    """Takes in what clients send; what is not good goes into the ledger alone.

    Args:
        merged: into which it goes.
        reader: checks each message.
        screen: looks at the contributions of a round together, before they are merged.
        seconds: to which the time of decoding and merging is added.
        door: what looks at releases; None for a server that is no edge.

    Attributes:
        equipped: nodes that answered what they were asked here, and so have the backbone.
    """

    def __init__(
        self, merged: MergedMemory, reader: MessageReader, screen: Verdicts | None,
        seconds: Seconds, door: Door | None = None,
    ) -> None:  # fmt: skip
        self._door = door
        self._merged = merged
        self._reader = reader
        self._screen = screen
        self._seconds = seconds
        self._round = 0
        self._asked: dict[int, list[_Asked]] = {}
        self._heard: Counter[tuple[int, str]] = Counter()
        self.equipped: set[int] = set()

    def expect(self, requests: Sequence[Message], number: int) -> None:
        """Be told of the requests of round ``number``."""
        # Asked no more than one round ago, a node may still be reported as gone.
        self._asked = {n: sent for n, sent in self._asked.items() if n >= number - 1}
        self._asked[number] = [_Asked(message.metadata) for message in requests]
        self._heard = Counter({key: n for key, n in self._heard.items() if key[0] >= number})

    def take(self, replies: Iterable[Message], number: int) -> None:
        """Merge what is good in ``replies`` to round ``number``.

        In floating point in the order of clients.
        """
        self._round = number
        # In fixed point no order changes a bit.
        ordered = replies if self._reader.form.exact else sorted(replies, key=sender)
        arrivals = self._arrivals(self._contributions(ordered))
        if self._screen is not None:
            arrivals = iter(self._screened(self._screen, list(arrivals)))
        # One by one, each while its bytes are still in the processor's cache.
        for arrival in arrivals:
            self._accept(arrival)

    def _contributions(self, replies: Iterable[Message]) -> Iterator[_Unread]:
        """What is in the replies of clients that did not fail; failures go into the ledger."""
        # A late reply may be to what another strategy asked before this one began.
        asked = {message.metadata.message_id for message in self._requests()}
        for reply in replies:
            if reply.has_error():
                self.equipped.discard(reply.metadata.src_node_id)
                self._note_failure(reply)
                continue
            if reply.metadata.reply_to_message_id in asked:
                self.equipped.add(reply.metadata.src_node_id)
            client = sender(reply)
            self._merged.known.answered(client, self._round)
            try:
                self._require_few(client)
                for arrays, header, size in read_headers(reply.content, self._reader.limits):
                    yield _Unread(client, arrays, header, size)
            except Exception as error:  # whatever is in a reply, the others are taken
                self._refuse(unreadable(error), client, 0, "", 0)

    def _require_few(self, client: str) -> None:
        """Refuse the messages of a client that sends more of them in a round than it may."""
        self._heard[self._round, client] += 1
        if (number := self._heard[self._round, client]) > self._reader.limits.max_messages:
            raise RejectedError(
                "size",
                f"message {number} of this round; at most {self._reader.limits.max_messages} "
                "are accepted",
            )

    def _arrivals(self, contributions: Iterable[_Unread]) -> Iterator[_Arrival]:
        """Contributions that pass the checks; all others are entered in the ledger."""
        for client, arrays, header, size in contributions:
            start = time.perf_counter()
            try:
                received = self._reader.read(arrays, header)
            except Exception as error:
                self._refuse(unreadable(error), client, size, *_number(header))
                continue
            finally:
                self._seconds.decode += time.perf_counter() - start
            yield _Arrival(client, received, size)

    def _screened(self, screen: Verdicts, arrivals: list[_Arrival]) -> list[_Arrival]:
        """The contributions that the screen lets pass."""
        start = time.perf_counter()
        sent = [self._reader.contribution(arrival.received) for arrival in arrivals]
        verdicts = screen(sent) if arrivals else ()
        passed = []
        for arrival, verdict in zip(arrivals, verdicts, strict=True):
            if verdict is None:
                passed.append(arrival)
            else:
                self._refuse_arrival(RejectedError("screened", verdict), arrival)
        self._seconds.merge += time.perf_counter() - start
        return passed

    def _accept(self, arrival: _Arrival) -> None:
        start = time.perf_counter()
        try:
            received = arrival.received
            self._merged.accept(
                self._door(received) if self._door and received.release else received,
                client=arrival.client,
                round_number=self._round,
                size=arrival.size,
            )
        except Exception as error:
            self._refuse_arrival(unreadable(error), arrival)
        self._seconds.merge += time.perf_counter() - start

    def _refuse_arrival(self, error: RejectedError, arrival: _Arrival) -> None:
        received = arrival.received
        self._refuse(error, arrival.client, arrival.size, received.epoch, received.seq)

    def _refuse(self, error: RejectedError, client: str, size: int, epoch: str, seq: int) -> None:
        logger.warning("contribution of client %s rejected: %s", client, error)
        self._merged.refuse(
            error, client=client, round_number=self._round, size=size, epoch=epoch, seq=seq
        )

    def _requests(self) -> Iterator[_Asked]:
        return (message for sent in self._asked.values() for message in sent)

    def _note_failure(self, reply: Message) -> None:
        client = str(who_failed(reply, self._requests()))
        reason = storable(f"{reply.error.code}: {reply.error.reason}")
        logger.warning("client %s failed: %s", client, reason)
        self._merged.ledger.add(Entry(self._round, client, "failed", reason=reason))


def unreadable(error: Exception) -> RejectedError:
    """The refusal of a message at which ``error`` was raised: its sender may have meant it."""
    return error if isinstance(error, RejectedError) else RejectedError("format", describe(error))


def _number(header: ConfigRecord) -> tuple[str, int]:
    """Epoch and number that a contribution says it has, if it does; for the ledger, and short."""
    epoch, seq = header.get("epoch"), header.get("seq")
    if not isinstance(epoch, str) or not isinstance(seq, int):
        return "", 0
    return epoch[:LONGEST_LIFE], seq
