"""One round of a protected federation, by messages of a Flower grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from protocl.errors import DataError, ProtoclError
from protocl.federation.privacy.vector import StatisticsLayout
from protocl.federation.secure.answers import (
    read_bytes,
    read_complaint,
    read_fraction,
    read_number,
)
from protocl.federation.secure.channel import FlowerChannel
from protocl.federation.secure.progress import Span, SummedParts
from protocl.federation.secure.protocol.agreement import Agreement
from protocl.federation.secure.protocol.keys import (
    COMMITMENT_BYTES,
    Dealing,
    Delivery,
    PublicKeys,
    join_entries,
    require_usable,
    split_entries,
)
from protocl.federation.secure.protocol.masked_sum import Complaint
from protocl.federation.secure.protocol.sealing import SEALED_BYTES
from protocl.federation.secure.terms import write_agreement
from protocl.federation.wire.npy import read_npy

_MOST_PARTS = 2**53


class NothingNewError(ProtoclError):
    """A round to which no client has anything to add."""


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
            keys = PublicKeys.from_bytes(read_bytes(answer, "keys"), agreement)
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
        self.senseless.clear()  # who does not enrol does no harm
        if answers and not self.new:
            raise NothingNewError("no client has anything new")
        return answers

    def share(
        self, rosters: Mapping[int, Mapping[int, PublicKeys]]
    ) -> dict[int, Dealing | Complaint]:
        """Give everybody who enrolled the keys of those that it shares with; what each deals."""
        joined: dict[int, bytes] = {}  # most often all get the same
        for roster in rosters.values():
            if id(roster) not in joined:
                joined[id(roster)] = join_entries({i: k.to_bytes() for i, k in roster.items()})
        requests = {
            i: {"roster": joined[id(roster)], "enrolled": len(rosters)}
            for i, roster in rosters.items()
        }

        def read(i: int, answer: ConfigRecord, content: RecordDict) -> Dealing | Complaint:
            if "complaint" in answer:
                return read_complaint(answer)
            return Dealing(
                split_entries(read_bytes(answer, "sealed"), SEALED_BYTES),
                split_entries(read_bytes(answer, "commitments"), COMMITMENT_BYTES),
            )

        return self._ask("train.share", self._in_session(requests), read)

    def mask(
        self, deliveries: Mapping[int, Delivery]
    ) -> Iterator[tuple[int, NDArray[np.uint64] | Complaint]]:
        """Give every party what was dealt to it; the masked vectors."""
        requests = {
            i: {
                "sealed": join_entries(delivery.sealed),
                "commitments": join_entries(delivery.commitments),
                "unfinished": list(self.summed.ask(self.nodes[i - 1], self._session)),
            }
            for i, delivery in deliveries.items()
        }
        self._save_summed()

        def read(
            i: int, answer: ConfigRecord, content: RecordDict
        ) -> NDArray[np.uint64] | Complaint:
            if "complaint" in answer:
                return read_complaint(answer)
            # Words travel as int64, as all arrays do; the bits are the same.
            return self._vector(content, "masked").view(np.uint64)

        yield from self._ask("train.mask", self._in_session(requests), read).items()

    # -- parts ------------------------------------------------------------------------------

    def _in_session(self, requests: Mapping[int, dict[str, Any]]) -> dict[int, ConfigRecord]:
        return {i: ConfigRecord({"session": self._session, **r}) for i, r in requests.items()}

    def _note(self, i: int, answer: ConfigRecord) -> None:
        """What a client says of its vector, checked before anything else is asked of it."""
        client, noise = answer.get("client"), read_fraction(answer, "noise")
        span = Span(read_number(answer, "start"), read_number(answer, "end"))
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
