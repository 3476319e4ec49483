"""How the server reaches the parties of a secure sum: by messages of a Flower grid."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from protocl.federation.secure.answers import answer_in, read_bytes, read_number
from protocl.federation.secure.protocol.aggregator import Aggregator
from protocl.federation.secure.protocol.keys import Revealed, join_entries, split_entries
from protocl.federation.secure.protocol.shamir import SHARE_BYTES
from protocl.federation.wire.replies import reading

logger = logging.getLogger(__name__)

T = TypeVar("T")


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
        speakers: identity -> the node that answered for it in the last step.
    """

    def __init__(self, grid: Grid, round_number: int, nodes: Sequence[int], timeout: float) -> None:
        self.grid = grid
        self.round_number = round_number
        self.nodes = nodes
        self.timeout = timeout
        self.senseless: dict[int, str] = {}
        self.speakers = dict(enumerate(nodes, start=1))

    def unmask(self, aggregator: Aggregator) -> dict[int, Revealed]:
        """Tell the survivors who survived; the shares of those who did not give theirs before.

        Nodes that were not invited to this sum are asked as well: a party may be one of them now.
        """
        request = ConfigRecord(
            {
                "session": aggregator.agreement.session.hex(),
                "survivors": join_entries(dict.fromkeys(aggregator.survivors, b"")),
                "signatures": join_entries(aggregator.signatures),
            }
        )
        invited = aggregator.agreement.invited

        def read(i: int, answer: ConfigRecord, content: RecordDict) -> tuple[int, Revealed]:
            identity = i if i <= invited else read_number(answer, "identity")
            seeds = split_entries(read_bytes(answer, "seeds"), SHARE_BYTES)
            keys = split_entries(read_bytes(answer, "keys"), SHARE_BYTES)
            return identity, Revealed(seeds, keys)

        waiting, online = aggregator.waiting_for, set(self.grid.get_node_ids())
        others = range(invited + 1, len(self.nodes) + 1)
        asked = [i for i in (*waiting, *others) if self.nodes[i - 1] in online]
        answers = self._ask("train.unmask", dict.fromkeys(asked, request), read)
        # Who says that it is a party is believed only where that party's own node is away.
        own = {i for i in waiting if self.nodes[i - 1] in online}
        believed = {}
        for i, (identity, shares) in answers.items():
            if identity in waiting and (i == identity or identity not in own):
                believed[identity] = shares
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
                logger.warning("a client failed in %s: %s", message_type, reply.error.reason)
            elif i is not None:
                node = self.nodes[i - 1]
                self.senseless[node] = f"its answer in {message_type} made no sense"
                with reading(f"the answer of client {node} in {message_type}"):
                    answers[i] = read(i, answer_in(reply.content), reply.content)
                    del self.senseless[node]
        return dict(sorted(answers.items()))
