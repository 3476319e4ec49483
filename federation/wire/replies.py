"""Where replies, which may hold anything, are read: what is wrong with one is its own fault."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord, RecordDict

from protocl.errors import DataError, ProtoclError
from protocl.federation.wire.limits import Limits
from protocl.federation.wire.npy import array_of, read_npy
from protocl.federation.wire.validation import RejectedError
from protocl.metrics.confusion import Confusion

logger = logging.getLogger(__name__)

MAX_EVALUATED = 2**40
"""Samples that one client may say that it evaluated; sums over all clients stay in 64 bits."""

MAX_PAIRS = 1_000_000
"""Pairs of classes in one client's confusion counts."""

_NUMBER = 8  # bytes

_SUPERLINK = 1  # node id

_LONGEST = 500  # characters of a text that may come from the sender


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Read something in the block; what cannot be read is refused by name and left out.

    A reply may hold anything, so any error at all is taken for the fault of its sender. Errors that
    the readers do not raise on purpose are logged with their traceback at level ``DEBUG``.

    Args:
        what: is read, for the log.
    """
    try:
        yield
    except Exception as error:
        logger.warning("%s refused: %s", what, describe(error))


def describe(error: Exception) -> str:
    """An error as one short text, with its type where its text may not speak for itself."""
    if isinstance(error, ProtoclError):
        return str(error)[:_LONGEST]
    logger.debug("unforeseen", exc_info=error)
    return f"{type(error).__name__}: {error}"[:_LONGEST]


def storable(text: str) -> str:
    """A text of a sender's as books and messages can hold it: no halves of letters, and short."""
    return text.encode(errors="backslashreplace").decode()[:_LONGEST]


def sender(reply: Message) -> str:
    """The node that a reply comes from, as the ledger names it."""
    return str(reply.metadata.src_node_id)


class Addressed(Protocol):
    """A request, or what is left of it."""

    @property
    def metadata(self) -> Metadata:
        """To whom it went, and by which name; it is named when it is sent."""


def who_failed(reply: Message, asked: Iterable[Addressed]) -> int:
    """The node for which a reply says that it failed.

    Args:
        reply: from the node, or from the SuperLink in place of one that is gone.
        asked: the messages of which one is replied to.
    """
    node, name = reply.metadata.src_node_id, reply.metadata.reply_to_message_id
    if node != _SUPERLINK:
        return node
    return next((m.metadata.dst_node_id for m in asked if m.metadata.message_id == name), node)


def content_of(reply: Message) -> RecordDict:
    """What a reply holds.

    Raises:
        DataError: it says that its client failed.
    """
    if reply.has_error():
        raise DataError(f"failed: {reply.error.reason}")
    return reply.content


def read_headers(
    content: RecordDict, limits: Limits
) -> Iterator[tuple[ArrayRecord, ConfigRecord, int]]:
    """Arrays, description and size in bytes of each contribution in a reply, oldest first.

    Raises:
        RejectedError: the reply is larger than the limits allow.
    """
    require_size(content, limits)
    for number in range(limits.max_contributions):
        arrays = content.get(f"arrays-{number}")
        header = content.get(f"header-{number}")
        if not isinstance(arrays, ArrayRecord) or not isinstance(header, ConfigRecord):
            return
        yield arrays, header, size_of(arrays) + size_of(header)


def require_size(content: RecordDict, limits: Limits) -> None:
    """Refuse a message that is too large, with all that is in it.

    Raises:
        RejectedError: it is.
    """
    size = sum(size_of(record) + len(name) for name, record in content.items())
    if size > limits.max_bytes:
        raise RejectedError(
            "size", f"a message of {size} bytes; at most {limits.max_bytes} are accepted"
        )


def size_of(record: ArrayRecord | ConfigRecord | MetricRecord) -> int:
    """Bytes of what a record holds, without those that tell its values apart."""
    if isinstance(record, ArrayRecord):
        return sum(len(name) + len(array.data) for name, array in record.items())
    return sum(len(name) + _size_of_value(value) for name, value in record.items())


def _size_of_value(value: object) -> int:
    if isinstance(value, list):
        return sum(map(_size_of_value, value))
    return len(value) if isinstance(value, str | bytes) else _NUMBER


def confusion_content(confusion: Confusion) -> RecordDict:
    """What a reply to an evaluation holds."""
    pairs = torch.stack([confusion.true, confusion.predicted, confusion.counts])
    return RecordDict(
        {
            "confusion": ArrayRecord({"pairs": array_of(pairs.numpy())}),
            "metrics": MetricRecord({"num-examples": confusion.total}),
        }
    )


def read_confusion(content: RecordDict, limits: Limits) -> Confusion:
    """The confusion counts in a reply to an evaluation.

    Raises:
        DataError: they are not there, or no counts.
        RejectedError: the reply is larger than the limits allow.
    """
    require_size(content, limits)
    record = content.get("confusion")
    if not isinstance(record, ArrayRecord) or "pairs" not in record:
        raise DataError("the reply holds no confusion counts")
    pairs = read_npy(record["pairs"].data)
    if pairs.ndim != 2 or len(pairs) != 3 or pairs.dtype != np.int64:
        raise DataError(f"confusion counts are {pairs.shape} {pairs.dtype}; expected (3, P) int64")
    if pairs.shape[1] > MAX_PAIRS:
        raise DataError(f"{pairs.shape[1]} pairs of classes; at most {MAX_PAIRS} are accepted")
    if (classes := len(np.unique(pairs[:2]))) > limits.max_classes:
        raise DataError(f"{classes} classes evaluated; at most {limits.max_classes} are accepted")
    if pairs.size and pairs.min() < 0:
        raise DataError("confusion counts are negative")
    # As Python integers, which do not wrap.
    if (total := sum(pairs[2].tolist())) > MAX_EVALUATED:
        raise DataError(f"{total} samples evaluated; at most {MAX_EVALUATED} are accepted")
    return Confusion(*torch.from_numpy(pairs.copy()))
