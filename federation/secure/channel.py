"""How the server reaches the clients of a protected round: by messages of a Flower grid."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from protocl.errors import DataError, ProtoclError
from protocl.federation.privacy.vector import StatisticsLayout
from protocl.federation.secure.aggregator import Aggregator
from protocl.federation.secure.client import write_agreement
from protocl.federation.secure.keys import (
    Agreement,
    PublicKeys,
    Revealed,
    join_entries,
    require_usable,
    split_entries,
)
from protocl.federation.secure.participant import SEALED_BYTES
from protocl.federation.secure.progress import Span, SummedParts
from protocl.federation.secure.shamir import SHARE_BYTES
from protocl.federation.wire.npy import read_npy
from protocl.federation.wire.replies import reading

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_PARTS = 2**53


class NothingNewError(ProtoclError):
    """A round to which no client has anything to add."""


class FlowerChannel:
    """Messages to the parties of a secure sum, and what can be read of their answers.

    A client that does not answer in time, or answers with what makes no sense, is left out.

    Args:
        grid: sends the messages.
        round_number: of the round.
        nodes: who is asked; a party's identity is its place here, from 1.
        timeout: seconds that a step waits for answers.
    """

    def __init__(self, grid: Grid, round_number: int, nodes: Sequence[int], timeout: float) -> None:
        self.grid = grid
        self.round_number = round_number
        self.nodes = nodes
        self.timeout = timeout

    def unmask(self, aggregator: Aggregator) -> dict[int, Revealed]:
        """Tell the survivors who survived; the shares of those who did not give theirs before.

        Nodes that were not invited to this sum are asked as well: a party may be one of them now.
        """
        request = ConfigRecord(
            {
                "session": aggregator.agreement.session.hex(),
                "survivors": join_entries(dict.fromkeys(aggregator.survivors, b"")),
            }
        )
        invited = aggregator.agreement.invited

        def read(i: int, answer: ConfigRecord, content: RecordDict) -> tuple[int, Revealed]:
            identity = i if i <= invited else _number(answer, "identity")
            seeds = split_entries(_bytes(answer, "seeds"), SHARE_BYTES)
            keys = split_entries(_bytes(answer, "keys"), SHARE_BYTES)
            return identity, Revealed(seeds, keys)

        waiting, online = aggregator.waiting_for, set(self.grid.get_node_ids())
        others = range(invited + 1, len(self.nodes) + 1)
        asked = [i for i in (*waiting, *others) if self.nodes[i - 1] in online]
        answers = self._ask("train.unmask", dict.fromkeys(asked, request), read)
        # Who says that it is a party is believed only where that party's own node is away.
        own = {i for i in waiting if self.nodes[i - 1] in online}
        return {
            identity: shares
            for i, (identity, shares) in answers.items()
            if identity in waiting and (i == identity or identity not in own)
        }

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
                with reading(f"the answer of client {self.nodes[i - 1]} in {message_type}"):
                    answers[i] = read(i, _answer(reply.content), reply.content)
        return dict(sorted(answers.items()))


class RoundChannel(FlowerChannel):
    """A :class:`protocl.federation.secure.aggregator.MaskingChannel` to the nodes of one round.

    Args:
        grid, round_number, nodes, timeout: as above.
        summed: how many parts of each client's data are in the sum.
        layout: of the vectors that are asked for.
        least_noise: share of a release's noise that every vector must hold.
        save_summed: called before masked vectors are asked for, which ``summed`` knows by then.

    Attributes:
        spans: identity -> which parts of its data the client's vector is of.
        noise: identity -> the share of a release's noise that the client says it added.
        new: who says that it has something new.
    """

    def __init__(
        self,
        grid: Grid,
        round_number: int,
        nodes: Sequence[int],
        timeout: float,
        *,
        summed: SummedParts,
        layout: StatisticsLayout,
        least_noise: Fraction,
        save_summed: Callable[[], None],
    ) -> None:
        super().__init__(grid, round_number, nodes, timeout)
        self.summed = summed
        self.spans: dict[int, Span] = {}
        self.noise: dict[int, Fraction] = {}
        self.new: set[int] = set()
        self._layout = layout
        self._least_noise = least_noise
        self._save_summed = save_summed
        self._session = ""
        self._clients: set[str] = set()
        known = summed.clients()
        self._requests: dict[int, dict[str, Any]] = {
            i: {
                "round": round_number,
                "summed": summed.of(node),
                "client": known.get(node, ""),
                "unfinished": list(summed.unfinished.get(node, ())),
                "layout-digest": layout.digest,
            }
            for i, node in enumerate(nodes, start=1)
        }

    def collect(self) -> dict[int, NDArray[np.int64]]:
        """Vectors without masks, of the clients that have something new."""

        def read(i: int, answer: ConfigRecord, content: RecordDict) -> NDArray[np.int64] | None:
            if "end" not in answer:
                return None
            vector = self._vector(content, "vector")
            self._note(i, answer)
            return vector

        answers = self._ask("train", {i: ConfigRecord(r) for i, r in self._requests.items()}, read)
        return {i: vector for i, vector in answers.items() if vector is not None}

    # -- the steps of a secure sum ----------------------------------------------------------

    def advertise(self, agreement: Agreement) -> dict[int, PublicKeys]:
        """Invite all clients to send their public keys.

        Raises:
            NothingNewError: no client has anything to add.
        """

        def read(i: int, answer: ConfigRecord, content: RecordDict) -> PublicKeys:
            keys = PublicKeys.from_bytes(_bytes(answer, "keys"))
            require_usable(keys)
            self._note(i, answer)
            return keys

        self._session = agreement.session.hex()
        terms = write_agreement(agreement)
        answers = self._ask(
            "train.advertise",
            {i: ConfigRecord({**r, **terms, "identity": i}) for i, r in self._requests.items()},
            read,
        )
        if answers and not self.new:
            raise NothingNewError("no client has anything new")
        return answers

    def share(self, roster: Mapping[int, PublicKeys]) -> dict[int, dict[int, bytes]]:
        """Give the roster to everybody in it; the sealed shares of each."""
        joined = join_entries({i: keys.to_bytes() for i, keys in roster.items()})
        request = ConfigRecord({"session": self._session, "roster": joined})
        return self._ask(
            "train.share",
            dict.fromkeys(roster, request),
            lambda i, answer, content: split_entries(_bytes(answer, "sealed"), SEALED_BYTES),
        )

    def mask(
        self, deliveries: Mapping[int, Mapping[int, bytes]]
    ) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """Give every party its sealed shares; the masked vectors."""
        requests = {
            i: ConfigRecord(
                {
                    "session": self._session,
                    "sealed": join_entries(sealed),
                    "unfinished": list(self.summed.ask(self.nodes[i - 1], self._session)),
                }
            )
            for i, sealed in deliveries.items()
        }
        self._save_summed()
        # Words travel as int64, as all arrays do; the bits are the same.
        answers = self._ask(
            "train.mask", requests, lambda i, _, content: self._vector(content, "masked")
        )
        for i, vector in answers.items():
            yield i, vector.view(np.uint64)

    # -- parts ------------------------------------------------------------------------------

    def _note(self, i: int, answer: ConfigRecord) -> None:
        """What a client says of its vector, checked before anything else is asked of it."""
        client, noise = answer.get("client"), _fraction(answer, "noise")
        span = Span(_number(answer, "start"), _number(answer, "end"))
        if not isinstance(client, str) or not 0 <= span.start <= span.end < _MOST_PARTS:
            raise DataError(f"client={client!r:.80}, parts {span}: expected a text and a range")
        if noise < self._least_noise:
            raise DataError(
                f"{noise} of the noise of a release: expected {self._least_noise} or more"
            )
        if client in self._clients:
            raise DataError("another node of this round is the same client: its state was copied")
        self.summed.recognise(client, self.nodes[i - 1], span.start)
        self._clients.add(client)
        self.spans[i], self.noise[i] = span, noise
        if answer.get("new") is True:
            self.new.add(i)

    def _vector(self, content: RecordDict, name: str) -> NDArray[np.int64]:
        arrays = content.array_records.get("arrays")
        if arrays is None or name not in arrays:
            raise DataError(f"the array '{name}' is missing")
        vector = read_npy(arrays[name].data)
        if vector.dtype != np.int64 or vector.shape != (self._layout.size,):
            raise DataError(
                f"the array '{name}' is {vector.shape} {vector.dtype}: expected "
                f"({self._layout.size},) int64"
            )
        return vector.astype(np.int64)


def _answer(content: RecordDict) -> ConfigRecord:
    if "answer" not in content.config_records:
        raise DataError("the record 'answer' is missing")
    return content.config_records["answer"]


def _bytes(answer: ConfigRecord, name: str) -> bytes:
    value = answer.get(name)
    if not isinstance(value, bytes):
        raise DataError(f"{name}={value!r:.40}: expected bytes")
    return value


def _number(answer: ConfigRecord, name: str) -> int:
    value = answer.get(name)
    if not isinstance(value, int):
        raise DataError(f"{name}={value!r:.40}: expected a whole number")
    return value


def _fraction(answer: ConfigRecord, name: str) -> Fraction:
    value = answer.get(name)
    match value:
        case [int(numerator), int(denominator)] if denominator > 0 <= numerator:
            return Fraction(numerator, denominator)
    raise DataError(f"{name}={value!r:.40}: expected numerator and denominator")
