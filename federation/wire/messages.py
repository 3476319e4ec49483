"""Memories in Flower messages, and the checks of everything that comes in.

A message holds one or more *contributions* of a client (the newest, and those not yet
acknowledged), or the server's merged memory. Each is an ``ArrayRecord`` of at most five arrays
(:mod:`protocl.federation.wire.codec`) and a ``ConfigRecord`` that says what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple, NoReturn, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord
from numpy.typing import NDArray

from protocl.errors import DataError
from protocl.federation.exactly_once.client import Kind
from protocl.federation.wire.codec import ERROR_BOUNDS, TOO_LARGE, UPPER, pack, pack_exactly, unpack
from protocl.federation.wire.limits import Limits
from protocl.federation.wire.low_rank import FACTORED, with_moment
from protocl.federation.wire.npy import array_of, read_npy
from protocl.federation.wire.statistics import Packed, PackedForm, Precision
from protocl.federation.wire.validation import (
    LONGEST_LIFE,
    RejectedError,
    check_class_ids,
    check_values,
    checked_claims,
)
from protocl.memory import PrototypeMemory
from protocl.memory.rows import class_id_of

FORMAT = "protocl-memory"
VERSION = 1

KINDS: tuple[Kind, ...] = ("delta", "full", "merged")
PRECISIONS = tuple(ERROR_BOUNDS)
_LAST = 2**53  # more contributions than any client makes

_COMMON = itemgetter("format", "version", "precision", "fingerprint", "statistics", "kind")
"""What the headers of one federation mostly have in common."""


@dataclass(frozen=True)
class Contribution:
    """Statistics that a client adds to the federation.

    Attributes:
        memory: of the samples that are new (``delta``) or of all samples of the client (``full``).
        epoch, seq, kind, replaces, shares, secret, row, moves: see :class:`.Label`.
        release: signed, of the edge that the client left last; "" for none.
        names: class id -> name, where classes are known by name (:func:`class_id_of`).
        withdraws: whether this full state leaves out what is to be forgotten of those before it.
    """

    memory: PrototypeMemory
    epoch: str
    seq: int
    kind: Kind = "delta"
    names: Mapping[int, str] = field(default_factory=dict)
    replaces: tuple[str, ...] = ()
    shares: tuple[int, ...] = ()
    secret: str = ""
    release: str = ""
    withdraws: bool = False
    row: bool = False
    moves: int = 0


class Received(NamedTuple):
    """A contribution as it came; see :class:`Contribution`.

    Attributes:
        statistics: checked, and still in the bytes of the message.
        epoch, seq, kind, names, replaces, shares, secret, release, row: see :class:`Contribution`.
        moves: see :class:`.Label`; no header says it.
        withdraws: see :class:`Contribution`.
    """

    statistics: Packed
    epoch: str
    seq: int
    kind: Kind
    names: Mapping[int, str]
    replaces: tuple[str, ...] = ()
    shares: tuple[int, ...] = ()
    secret: str = ""
    release: str = ""
    withdraws: bool = False
    row: bool = False
    moves: int = 0

    @classmethod
    def of(cls, contribution: Contribution) -> Received:
        """Pack a contribution that did not come in a message as if it had."""
        return cls(
            pack_exactly(contribution.memory),
            contribution.epoch, contribution.seq, contribution.kind, contribution.names,
            contribution.replaces, contribution.shares, contribution.secret,
            contribution.release, contribution.withdraws, contribution.row,
        )  # fmt: skip


def encode(
    contribution: Contribution, precision: Precision = "exact"
) -> tuple[ArrayRecord, ConfigRecord]:
    """The two records that carry a contribution (or, with kind ``merged``, the server's memory).

    Raises:
        OverflowError: a second moment of a contribution exceeds 64 bits in fixed point.
    """
    memory = contribution.memory
    records = ArrayRecord()
    packed = pack(memory, precision)
    if UPPER in packed and contribution.kind != "merged" and not contribution.row:
        raise OverflowError(TOO_LARGE)
    for name, array in packed.items():
        records[name] = array_of(array)
    fingerprint = memory.fingerprint or ""
    header = _usual_header(_description(memory), fingerprint, precision, contribution.kind).copy()
    header["epoch"] = contribution.epoch
    header["seq"] = contribution.seq
    if contribution.replaces:
        header["replaces"] = list(contribution.replaces)
    if contribution.shares:
        header["shares"] = list(contribution.shares)
    for key in ("secret", "release", "row", "withdraws"):
        if value := getattr(contribution, key):
            header[key] = value
    if contribution.names:
        header["class-names"] = [contribution.names[int(c)] for c in memory.classes]
    return records, header


@lru_cache(maxsize=16)  # Flower checks each value that is set, for longer than a sum takes
def _usual_header(
    statistics: str, fingerprint: str, precision: Precision, kind: Kind
) -> ConfigRecord:
    """What the headers of one federation have in common; to be copied."""
    return ConfigRecord(
        {
            "format": FORMAT,
            "version": VERSION,
            "precision": precision,
            "fingerprint": fingerprint,
            "statistics": statistics,
            "kind": kind,
        }
    )


def decode(
    arrays: ArrayRecord,
    header: ConfigRecord,
    like: PrototypeMemory,
    limits: Limits | None = None,
) -> Contribution:
    """Check what came in and read it; for many messages use one :class:`MessageReader`.

    Args:
        arrays, header: as :func:`encode` makes them, from a sender that may be faulty or hostile.
        like: the memory that it must fit: width, level, feature map, arithmetic, fingerprint.
        limits: what it may at most claim; of a merged memory :meth:`Limits.of_sum`.

    Raises:
        RejectedError: anything does not fit.
    """
    return (reader := MessageReader(like, limits)).contribution(reader.read(arrays, header))


class MessageReader:
    """Reads the messages of one federation.

    Args:
        like: as for :func:`decode`.
        limits: as there.
        kinds: of contribution that are read.
        means: groups of each class, which have ids of their own.
        rows: whether contributions are of edges, in two words where need be, or of clients.

    Attributes:
        form: how statistics are packed.

    Raises:
        ValueError: the limits are more than 64 bits hold.
    """

    def __init__(
        self,
        like: PrototypeMemory,
        limits: Limits | None = None,
        kinds: tuple[Kind, ...] = KINDS,
        means: int = 1,
        rows: bool = False,
    ) -> None:
        self.form = PackedForm(like)
        self.limits = limits or Limits()
        self.limits.feature_bound(self.form)
        self._allowed = self.limits.allowed_ids()
        self._kinds, self._means, self._rows = kinds, means, rows
        self._fingerprint = like.fingerprint
        self._known_ids: NDArray[np.int64] | None = None
        self._accepted: tuple[object, ...] = ()
        self._described = _description(like)
        self._expected: dict[str, object] = {
            "format": FORMAT,
            "version": VERSION,
            "statistics": self._described,
        }
        if like.fingerprint is not None:
            self._expected["fingerprint"] = like.fingerprint

    def read(self, arrays: ArrayRecord, header: ConfigRecord) -> Received:
        """Check a contribution; its statistics stay where they are, in the bytes of the message.

        Raises:
            RejectedError: anything does not fit; the reason says what.
        """
        values = dict(header.items())
        self._check_header(values)
        precision = cast(Precision, values["precision"])
        row = self._checked_row(values)
        packed = self._checked(arrays, precision, two_words=row or values["kind"] == "merged")
        names = values.get("class-names")
        return Received(
            packed,
            cast(str, values["epoch"]),
            cast(int, values["seq"]),
            cast(Kind, values["kind"]),
            {} if names is None else self._checked_names(packed.class_ids, names),
            *checked_claims(values),
            row,
        )

    def _checked_row(self, values: Mapping[str, object]) -> bool:
        if (row := values.get("row", False)) is not self._rows:
            theirs, ours = ("clients", "edges") if self._rows else ("edges", "clients")
            raise RejectedError("format", f"row={row!r:.80} is of {theirs}; expected {ours}")
        return self._rows

    def _checked(self, records: ArrayRecord, precision: Precision, *, two_words: bool) -> Packed:
        arrays: dict[str, NDArray[Any]] = {}
        size = 0
        try:
            for name, array in records.items():
                size += len(array.data)
                arrays[name] = read_npy(array.data)
            if size > self.limits.max_bytes:
                raise RejectedError(
                    "size", f"{size} bytes of arrays; at most {self.limits.max_bytes} are accepted"
                )
            if arrays.keys() & FACTORED:
                arrays = with_moment(self.form, arrays)
            packed = unpack(self.form, arrays, precision, two_words=two_words)
        except DataError as error:
            raise RejectedError("shape", str(error)) from error
        if packed.class_ids is not self._known_ids:
            check_class_ids(packed.class_ids, self.limits, self._allowed, self._means)
            self._known_ids = packed.class_ids
        check_values(packed, self.form, self.limits, ERROR_BOUNDS[precision])
        if UPPER in packed.sums:  # of two words neither tells how large a sum is
            packed = packed._replace(reach=packed.reach | {"second": 0, UPPER: 0})
        return packed

    def contribution(self, received: Received) -> Contribution:
        """Turn what was read into a contribution with a memory of its own."""
        memory = self.form.memory(received.statistics)
        return Contribution(memory, *received[1:])

    def _checked_names(self, class_ids: NDArray[np.int64], names: Any) -> dict[int, str]:
        ids, longest = class_ids.tolist(), self.limits.max_text
        if not isinstance(names, list) or len(names) != len(ids):
            raise RejectedError("names", f"class names are {names!r:.80}; expected one a class")
        for class_id, name in zip(ids, names, strict=True):
            if not isinstance(name, str) or len(name) > longest or class_id_of(name) != class_id:
                raise RejectedError(
                    "names",
                    f"class {name!r:.80} has id {class_id}, which is not its own, or more than "
                    f"{longest} letters",
                )
        return dict(zip(ids, names, strict=True))

    def _check_header(self, values: Mapping[str, object]) -> None:
        epoch, seq = values.get("epoch"), values.get("seq")
        if not isinstance(epoch, str) or not isinstance(seq, int):
            self._refuse_header(values)
        if len(epoch) > LONGEST_LIFE or not 0 <= seq <= _LAST:
            raise RejectedError(
                "format",
                f"epoch={epoch!r:.80} seq={seq}: expected at most {LONGEST_LIFE} letters, and a "
                f"number up to {_LAST}",
            )
        try:
            common = _COMMON(values)
        except KeyError:
            self._refuse_header(values)
        if common == self._accepted:
            return
        if not (
            self._expected.items() <= values.items()
            and isinstance(values["fingerprint"], str)
            and len(values["fingerprint"]) <= self.limits.max_text
            and values["precision"] in PRECISIONS
            and values["kind"] in self._kinds
        ):
            self._refuse_header(values)
        self._accepted = common

    def _refuse_header(self, header: Mapping[str, object]) -> NoReturn:
        """Say what is wrong with a header."""
        if header.get("format") != FORMAT or header.get("version") != VERSION:
            raise RejectedError(
                "format",
                f"format {header.get('format')!r:.80} version {header.get('version')!r:.80}; "
                f"expected '{FORMAT}' version {VERSION}: install the same protocl on all nodes",
            )
        for key, kind in (("epoch", str), ("seq", int), ("fingerprint", str)):
            if not isinstance(header.get(key), kind):
                raise RejectedError(
                    "format", f"{key}={header.get(key)!r:.80}: expected {kind.__name__}"
                )
        if header.get("precision") not in PRECISIONS:
            raise RejectedError("format", f"precision {header.get('precision')!r:.80} is unknown")
        if header.get("kind") not in self._kinds:
            raise RejectedError(
                "format", f"kind {header.get('kind')!r:.80}: expected {', '.join(self._kinds)}"
            )
        theirs = header["fingerprint"]
        if self._fingerprint is not None and theirs != self._fingerprint:
            raise RejectedError(
                "fingerprint",
                f"statistics of backbone {theirs or '(none)':.80}; this federation's is "
                f"{self._fingerprint}",
            )
        theirs = header.get("statistics")
        raise RejectedError(
            "mismatch", f"statistics are {theirs!r:.300}; expected {self._described}"
        )


def _description(memory: PrototypeMemory) -> str:
    """Width, level, feature map and arithmetic as one text: each key costs Flower microseconds."""
    described = memory.describe()
    if not memory.exact:
        del described["step"]  # has no meaning
    return " ".join(f"{key}={value}" for key, value in described.items())
