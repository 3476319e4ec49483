"""All that protocl uses of Flower beyond its published interface, and the quiet it needs.

Flower's interface moves from release to release. What is touched here is held to the contract in
``tests/federation/wire/test_compat.py``, which passes with 1.41 and 1.42; no other module reaches
below ``flwr.app``, ``flwr.serverapp`` and ``flwr.clientapp``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

import httpx
from flwr.app import Error, Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from protocl.federation.wire.sizes import UnusualError, reckoned_bytes

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
