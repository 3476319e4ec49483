"""How the server reaches the parties of a secure sum: by messages of a Flower grid."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from protocl.federation.secure.answers import (
    answer_in,
    read_bytes,
    read_number,
    read_signature,
)
from protocl.federation.secure.protocol.aggregator import Aggregator
from protocl.federation.secure.protocol.agreement import SecureAggregationError
from protocl.federation.secure.protocol.keys import Revealed, join_entries, split_entries
from protocl.federation.secure.protocol.shamir import SHARE_BYTES
from protocl.federation.wire.replies import reading, storable, who_failed

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_TOLD = 3
"""Clients that failed whose reasons stand beside what that led to."""


class FlowerChannel:
    """Messages to the parties of a secure sum, and what can be read of their answers.

    A client that does not answer in time, or answers with what makes no sense, is left out.

    Args:
        grid: sends the messages.
        round_number: of the round.
        nodes: who is asked; a party's identity is its place here, from 1.
        timeout: seconds that a step waits for answers.

    Attributes:
        senseless: node -> which of its answers made no sense.
        failed: node -> why it answered nothing but that it failed.
        speakers: identity -> the node that answered for it in the last step.
    """

    def __init__(self, grid: Grid, round_number: int, nodes: Sequence[int], timeout: float) -> None:
        self.grid = grid
        self.round_number = round_number
        self.nodes = nodes
        self.timeout = timeout
        self.senseless: dict[int, str] = {}
        self.failed: dict[int, str] = {}
        self.speakers = dict(enumerate(nodes, start=1))

    def agree(self, aggregator: Aggregator) -> dict[int, bytes]:
        """Have the survivors sign the list of them; the signatures of those who did not before."""
        request = {"survivors": join_entries(dict.fromkeys(aggregator.survivors, b""))}
        waiting = sorted(set(aggregator.survivors) - set(aggregator.signatures))
        return self._ask_parties(aggregator, waiting, "train.agree", request, read_signature)

    def unmask(self, aggregator: Aggregator) -> dict[int, Revealed]:
        """Tell the survivors who survived; the shares of those who did not give theirs before."""
        request = {
            "survivors": join_entries(dict.fromkeys(aggregator.survivors, b"")),
            "signatures": join_entries(aggregator.signatures),
        }

        def read(answer: ConfigRecord) -> Revealed:
            seeds = split_entries(read_bytes(answer, "seeds"), SHARE_BYTES)
            return Revealed(seeds, split_entries(read_bytes(answer, "keys"), SHARE_BYTES))

        return self._ask_parties(aggregator, aggregator.waiting_for, "train.unmask", request, read)

    def tell_who_failed(self, error: SecureAggregationError) -> None:
        """Have ``error`` end with what clients that failed in these steps say."""
        told = [f"client {node} failed in {why}" for node, why in self.failed.items()]
        error.args = ("; ".join((str(error), *told[:_MOST_TOLD])),)

    def _ask_parties(
        self,
        aggregator: Aggregator,
        waiting: Sequence[int],
        message_type: str,
        request: Mapping[str, Any],
        read: Callable[[ConfigRecord], T],
    ) -> dict[int, T]:
        """What parties of an earlier step answer, by identity.

        Nodes that were not invited to this sum are asked as well: a party may be one of them now.
        """
        invited = aggregator.agreement.invited
        config = ConfigRecord({"session": aggregator.agreement.session.hex(), **request})

        def read_both(i: int, answer: ConfigRecord, content: RecordDict) -> tuple[int, T]:
            return i if i <= invited else read_number(answer, "identity"), read(answer)

        online = set(self.grid.get_node_ids())
        others = range(invited + 1, len(self.nodes) + 1)
        asked = [i for i in (*waiting, *others) if self.nodes[i - 1] in online]
        answers = self._ask(message_type, dict.fromkeys(asked, config), read_both)
        # Who says that it is a party is believed only where that party's own node is away.
        own = {i for i in waiting if self.nodes[i - 1] in online}
        believed = {}
        for i, (identity, answer) in answers.items():
            if identity in waiting and (i == identity or identity not in own):
                believed[identity] = answer
                self.speakers[identity] = self.nodes[i - 1]
        return believed

    def _ask(
        self,
        message_type: str,
        requests: Mapping[int, ConfigRecord],
        read: Callable[[int, ConfigRecord, RecordDict], T],
    ) -> dict[int, T]:
        """The answers of those who gave one that can be read, by identity, ascending."""
        messages = [
            Message(
                RecordDict({"config": request}), dst_node_id=self.nodes[i - 1],
                message_type=message_type, group_id=str(self.round_number),
            )
            for i, request in requests.items()
        ]  # fmt: skip
        identities = {self.nodes[i - 1]: i for i in requests}
        answers: dict[int, T] = {}
        for reply in self.grid.send_and_receive(messages, timeout=self.timeout):
            i = identities.get(reply.metadata.src_node_id)
            if reply.has_error():
                node, reason = who_failed(reply, messages), storable(str(reply.error.reason))
                self.failed[node] = f"{message_type}: {reason}"
                logger.warning("client %d failed in %s: %s", node, message_type, reason)
            elif i is not None:
                node = self.nodes[i - 1]
                self.senseless[node] = f"its answer in {message_type} made no sense"
                with reading(f"the answer of client {node} in {message_type}"):
                    answers[i] = read(i, answer_in(reply.content), reply.content)
                    del self.senseless[node]
        return dict(sorted(answers.items()))
