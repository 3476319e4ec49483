"""All that protocl uses of Flower beyond its published interface, and the quiet it needs.

Flower's interface moves from release to release. What is touched here is held to the contract in
``tests/federation/wire/test_compat.py``, which passes with 1.41 and 1.42; no other module reaches
below ``flwr.app``, ``flwr.serverapp`` and ``flwr.clientapp``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import httpx
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",  # else every process posts to telemetry.flower.ai
    "FLWR_DISABLE_UPDATE_CHECK": "1",  # else commands ask api.flower.ai for a newer version
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # else a fresh venv from PyPI each run
    "RAY_USAGE_STATS_ENABLED": "0",
    # A newer Ray would otherwise hide the GPUs from tasks that ask for none, against a warning.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Variables under which Flower and Ray neither report home nor install anything."""

CONNECTION_ERRORS = (OSError, httpx.HTTPError)
"""What Flower raises when a SuperLink cannot be reached, and not when a message is unreadable."""

_INT32, _INT64, _UINT64 = 2**31, 2**63, 2**64

CLIENT_RAISED = 2
"""Flower's error code for a ClientApp that raised."""


def failed_reply(request: Message, reason: str) -> Message:
    """The reply to ``request`` of a client that failed."""
    return Message(Error(CLIENT_RAISED, reason), reply_to=request)


def quiet(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set :data:`ENVIRONMENT` where the user has not decided otherwise."""
    for name, value in ENVIRONMENT.items():
        environment.setdefault(name, value)


@contextmanager
def without_round_reports() -> Iterator[None]:
    """Let Flower log warnings only, since it prints every round twice."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def act_as_server(run_id: int = 1) -> Run:
    """Allow this process to make messages outside a task that Flower started.

    ``Message(...)`` asks for the identity of the running task, which only Flower's own launchers
    set. Needed by the grid inside this process and by tests.
    """
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, 1
    return Run.create_empty(run_id)


def name_message(message: Message, message_id: str) -> None:
    """Give a message the id that a SuperLink would give it."""
    message.metadata.__dict__["_message_id"] = message_id


def content_bytes(content: RecordDict) -> int:
    """Bytes of the serialised records of a message, as protocol buffers."""
    try:
        return reckoned_bytes(content)
    except UnusualError:
        return int(recorddict_to_proto(content).ByteSize())


class UnusualError(Exception):
    """A part whose size is not reckoned here: serialise it."""


def reckoned_bytes(content: RecordDict) -> int:
    """Bytes of the serialised records of a message, reckoned from their parts.

    A field of protocol buffers is a tag, for what has no fixed length a varint of it, and the
    content; one at its default is left out unless it is one of several. The fields are those of
    Flower's ``recorddict.proto``, each of whose tags has one byte.

    Source: Protocol Buffers documentation, Encoding.

    Raises:
        UnusualError: it holds lists, or what Flower would refuse to serialise.
    """
    try:
        return sum(_item(name, _record(record)) for name, record in content.items())
    except UnicodeEncodeError as error:
        raise UnusualError from error


def _record(record: Any) -> int:
    sizes = _SIZES.get(type(record))
    if sizes is None:
        raise UnusualError
    total = 0
    for name, value in record.items():
        size = sizes.get(type(value))
        if size is None:
            raise UnusualError
        total += _item(name, size(value))
    return total


def _item(name: str, size: int) -> int:
    """A name beside a value of ``size`` bytes, as a field."""
    return _field(_text(name) + _field(size))


def _field(size: int) -> int:
    """A tag and a length before ``size`` bytes."""
    return 1 + _varint(size) + size


def _varint(value: int) -> int:
    """Seven bits a byte."""
    return (value.bit_length() + 6) // 7 or 1


def _length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _text(text: str) -> int:
    """A field that is left out where it is empty."""
    return _field(_length(text)) if text else 0


def _array(array: Array) -> int:
    if type(array.data) is not bytes or not all(map(_is_length, array.shape)):
        raise UnusualError
    sides = sum(map(_varint, array.shape))
    shape = _field(sides) if sides else 0
    data = _field(len(array.data)) if array.data else 0
    return _text(array.dtype) + shape + _text(array.stype) + data


def _is_length(side: Any) -> bool:
    return type(side) is int and 0 <= side < _INT32


def _whole(value: int) -> int:
    """Zigzag, or without a sign where it needs 64 bits."""
    if not -_INT64 <= value < _UINT64:
        raise UnusualError
    if value < _INT64:
        value = 2 * value if value >= 0 else -2 * value - 1
    return 1 + _varint(value)


_NUMBERS: dict[type, Callable[[Any], int]] = {int: _whole, float: lambda _: 9}
_SIZES: Mapping[type, Mapping[type, Callable[[Any], int]]] = {
    ArrayRecord: {Array: _array},
    MetricRecord: _NUMBERS,
    ConfigRecord: {
        **_NUMBERS,
        bool: lambda _: 2,
        str: lambda text: _field(_length(text)),
        bytes: lambda content: _field(len(content)),
    },
}
