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
from protocl.federation.npy import read_npy
from protocl.federation.protected_client import write_agreement
from protocl.federation.secure_agreement import (
    Agreement,
    PublicKeys,
    Revealed,
    join_entries,
    split_entries,
)
from protocl.federation.secure_participant import SEALED_BYTES
from protocl.federation.shamir import SHARE_BYTES
from protocl.federation.summed_parts import SummedParts

logger = logging.getLogger(__name__)

T = TypeVar("T")


class NothingNewError(ProtoclError):
    """A round to which no client has anything to add."""


class FlowerChannel:
    """A :class:`protocl.federation.secure_aggregation.Channel` to the nodes of one round.

    A client that does not answer in time, or answers with what makes no sense, is left out.

    Args:
        grid: sends the messages.
        round_number: of the round.
        nodes: who is asked; a party's identity is its place here, from 1.
        summed: how many parts of each client's data are in the sum.
        layout_digest: of the vectors that are asked for.
        timeout: seconds that a step waits for answers.
        save_summed: called before masked vectors are asked for, which ``summed`` knows by then.

    Attributes:
        ends: identity -> how many parts of its data the client's vector brings the sum to.
        noise: identity -> the share of a release's noise that the client says it added.
    """

    def __init__(
        self,
        grid: Grid,
        round_number: int,
        nodes: Sequence[int],
        summed: SummedParts,
        layout_digest: str,
        timeout: float,
        save_summed: Callable[[], None],
    ) -> None:
        self.grid = grid
        self.round_number = round_number
        self.nodes = nodes
        self.timeout = timeout
        self.summed = summed
        self._save_summed = save_summed
        self._session = ""
        self.ends: dict[int, int] = {}
        self.noise: dict[int, Fraction] = {}
        self._clients: set[str] = set()
        self._requests: dict[int, dict[str, Any]] = {
            i: {
                "round": round_number,
                "summed": summed.of(node),
                "layout-digest": layout_digest,
            }
            for i, node in enumerate(nodes, start=1)
        }

    def collect(self) -> dict[int, NDArray[np.int64]]:
        """Vectors without masks, of the clients that have something new."""

        def read(i: int, answer: ConfigRecord, content: RecordDict) -> NDArray[np.int64] | None:
            if "end" not in answer:
                return None
            vector = _vector(content, "vector")
            self._note(i, answer)
            return vector

        answers = self._ask("train", {i: ConfigRecord(r) for i, r in self._requests.items()}, read)
        return {i: vector for i, vector in answers.items() if vector is not None}

    # -- the steps of a secure sum ----------------------------------------------------------

    def advertise(self, agreement: Agreement) -> dict[int, PublicKeys]:
        """Invite all clients.

        Raises:
            NothingNewError: no client has anything to add.
        """

        def read(i: int, answer: ConfigRecord, content: RecordDict) -> PublicKeys:
            keys = PublicKeys.from_bytes(_bytes(answer, "keys"))
            self._note(i, answer)
            return keys

        self._session = agreement.session.hex()
        terms = write_agreement(agreement)
        requests = {
            i: ConfigRecord({**request, **terms, "identity": i})
            for i, request in self._requests.items()
        }
        answers = self._ask("train.advertise", requests, read)
        if answers and not any(self.ends[i] > self._summed_of(i) for i in answers):
            raise NothingNewError("no client has anything new")
        return answers

    def share(self, roster: Mapping[int, PublicKeys]) -> dict[int, dict[int, bytes]]:
        """Give the roster to everybody in it; the sealed shares of each."""
        joined = join_entries({i: keys.to_bytes() for i, keys in roster.items()})
        return self._ask(
            "train.share",
            {i: ConfigRecord({"roster": joined}) for i in roster},
            lambda i, answer, content: split_entries(_bytes(answer, "sealed"), SEALED_BYTES),
        )

    def mask(
        self, deliveries: Mapping[int, Mapping[int, bytes]]
    ) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """Give every party its sealed shares; the masked vectors."""
        requests = {
            i: ConfigRecord(
                {
                    "sealed": join_entries(sealed),
                    "unfinished": list(self.summed.ask(self.nodes[i - 1], self._session)),
                }
            )
            for i, sealed in deliveries.items()
        }
        self._save_summed()
        # Words travel as int64, as all arrays do; the bits are the same.
        answers = self._ask(
            "train.mask", requests, lambda i, _, content: _vector(content, "masked")
        )
        for i, vector in answers.items():
            yield i, vector.view(np.uint64)

    def unmask(self, survivors: list[int]) -> dict[int, Revealed]:
        """Tell the survivors who survived; their shares."""
        joined = join_entries(dict.fromkeys(survivors, b""))
        return self._ask(
            "train.unmask",
            {i: ConfigRecord({"survivors": joined}) for i in survivors},
            lambda i, answer, content: Revealed(
                split_entries(_bytes(answer, "seeds"), SHARE_BYTES),
                split_entries(_bytes(answer, "keys"), SHARE_BYTES),
            ),
        )

    # -- parts ------------------------------------------------------------------------------

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
        identities = {node: i for i, node in enumerate(self.nodes, start=1)}
        answers: dict[int, T] = {}
        for reply in self.grid.send_and_receive(messages, timeout=self.timeout):
            if reply.has_error():
                logger.warning("a client failed in %s: %s", message_type, reply.error.reason)
                continue
            i = identities.get(reply.metadata.src_node_id)
            if i is None or i not in requests:
                continue
            try:
                answers[i] = read(i, _answer(reply.content), reply.content)
            except ProtoclError as error:
                logger.warning("answer of client %d refused: %s", self.nodes[i - 1], error)
        return dict(sorted(answers.items()))

    def _summed_of(self, i: int) -> int:
        return self.summed.of(self.nodes[i - 1])

    def _note(self, i: int, answer: ConfigRecord) -> None:
        client, start, end = answer.get("client"), answer.get("start"), answer.get("end")
        noise = answer.get("noise")
        if not isinstance(client, str) or not isinstance(start, int):
            raise DataError(f"client={client!r}, start={start!r}: expected a text and a number")
        if client in self._clients:
            raise DataError("another node of this round is the same client: its state was copied")
        self.summed.recognise(client, self.nodes[i - 1], start)
        self._clients.add(client)
        if not isinstance(end, int) or end < start:
            raise DataError(f"end={end!r}: expected {start} or more")
        if not isinstance(noise, list) or len(noise) != 2 or noise[1] == 0:
            raise DataError(f"noise={noise!r}: expected numerator and denominator")
        self.ends[i], self.noise[i] = end, Fraction(int(noise[0]), int(noise[1]))


def _answer(content: RecordDict) -> ConfigRecord:
    if "answer" not in content.config_records:
        raise DataError("the record 'answer' is missing")
    return content.config_records["answer"]


def _bytes(answer: ConfigRecord, name: str) -> bytes:
    value = answer.get(name)
    if not isinstance(value, bytes):
        raise DataError(f"{name}={value!r:.40}: expected bytes")
    return value


def _vector(content: RecordDict, name: str) -> NDArray[np.int64]:
    arrays = content.array_records.get("arrays")
    if arrays is None or name not in arrays:
        raise DataError(f"the array '{name}' is missing")
    vector = read_npy(arrays[name].data)
    if vector.dtype != np.int64:
        raise DataError(f"the array '{name}' is of type {vector.dtype}: expected int64")
    return vector.astype(np.int64)
