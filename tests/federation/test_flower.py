"""The contract with Flower: what protocl uses below its published interface still works."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.supercore.task_identity import TaskIdentity

from protocl.federation.flower import ENVIRONMENT, act_as_server, content_bytes, name_message, quiet


def test_flower_is_the_release_that_was_studied():
    assert version("flwr").startswith("1.41.")


def test_messages_can_be_made_outside_a_task(monkeypatch):
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, None)
    with pytest.raises(RuntimeError, match="not set"):
        Message(RecordDict(), 7, "train")
    run = act_as_server(run_id=5)
    message = Message(RecordDict(), 7, "train")
    assert (message.metadata.run_id, run.run_id) == (5, 5)


def test_a_named_message_is_answered_under_its_name():
    act_as_server()
    message = Message(RecordDict(), 7, "train")
    name_message(message, "abc")
    reply = Message(RecordDict(), reply_to=message)
    assert message.metadata.message_id == "abc"
    assert reply.metadata.reply_to_message_id == "abc"
    assert reply.metadata.src_node_id == 7


def test_bytes_are_those_of_the_serialised_records():
    content = RecordDict(
        {
            "a": ArrayRecord({"x": Array(np.zeros(1000))}),
            "c": ConfigRecord({"names": ["one", "two"]}),
        }
    )
    assert content_bytes(content) == len(recorddict_to_proto(content).SerializeToString())
    assert content_bytes(content) > 8000


def test_quiet_leaves_the_users_choice_alone():
    environment = {"FLWR_TELEMETRY_ENABLED": "1"}
    quiet(environment)
    assert environment == {**ENVIRONMENT, "FLWR_TELEMETRY_ENABLED": "1"}


def test_importing_the_package_does_not_import_flower():
    script = "import sys, protocl.federation; print('flwr' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
