"""The contract with Flower: what protocl uses below its published interface still works."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    FedAvg,
)
from flwr.supercore.task_identity import TaskIdentity

from protocl.federation import InProcessGrid, QuorumGrid, simulate
from protocl.federation.wire.compat import (
    CONNECTION_ERRORS,
    ENVIRONMENT,
    Run,
    act_as_server,
    content_bytes,
    failed_reply,
    name_message,
    quiet,
)
from protocl.federation.wire.relayed_grids import MeteredGrid
from protocl.federation.wire.traffic import Traffic


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


def test_a_failed_reply_is_one_of_the_node_that_was_asked():
    act_as_server()
    request = Message(RecordDict(), 7, "train")
    name_message(request, "abc")
    reply = failed_reply(request, "the disk is full")
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (2, "the disk is full")
    assert (reply.metadata.src_node_id, reply.metadata.reply_to_message_id) == (7, "abc")


def averaging_client() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        moved = {name: Array(array.numpy() + 1) for name, array in arrays.items()}
        metrics = MetricRecord({"num-examples": 10, "norm_bit": 1.0})
        content = RecordDict({"arrays": ArrayRecord(moved), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


@pytest.mark.parametrize(
    "wrapper",
    [DifferentialPrivacyServerSideAdaptiveClipping, DifferentialPrivacyClientSideAdaptiveClipping],
)
def test_strategies_of_flower_that_read_replies_twice(wrapper):
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
    strategy = wrapper(inner, noise_multiplier=0.1, num_sampled_clients=3)
    traffic = Traffic()
    initial = ArrayRecord({"weights": Array(np.zeros(4, np.float32))})
    result = simulate(
        strategy, averaging_client(), clients=3, rounds=2, initial=initial, traffic=traffic
    )
    assert result.arrays["weights"].numpy().shape == (4,)
    assert not (result.arrays["weights"].numpy() == 0).any()
    assert {number for number, *_ in traffic.rows} == {1, 2}


@pytest.mark.parametrize(
    "wrap", [lambda grid: grid, QuorumGrid, lambda g: MeteredGrid(g, Traffic())]
)
def test_all_replies_are_there_when_sending_returns(wrap):
    grid = wrap(InProcessGrid(averaging_client(), 3))
    content = RecordDict({"arrays": ArrayRecord({"weights": Array(np.zeros(2))})})
    messages = [Message(content, node, "train", group_id="one") for node in grid.get_node_ids()]
    replies = grid.send_and_receive(messages)
    assert isinstance(replies, list)
    assert len(replies) == 3


def test_a_run_is_a_run():
    grid = InProcessGrid(averaging_client(), 1)
    run = Run.create_empty(7)
    grid.set_run(run)
    assert grid.run is run
    with pytest.raises(TypeError, match="run='seven': expected a"):
        grid.set_run("seven")


class Unreadable(InProcessGrid):
    """A SuperLink with replies which Flower cannot read, each in the way of all others."""

    bad = (1001,)
    error: Exception = KeyError("head")

    def pull_messages(self, message_ids):
        wanted = [self._replies[i] for i in message_ids if i in self._replies]
        for reply in wanted:
            if reply.metadata.src_node_id in self.bad:
                raise self.error
        return super().pull_messages(message_ids)


def test_a_reply_that_cannot_be_read_is_one_of_a_client_that_failed(caplog):
    grid = QuorumGrid(Unreadable(averaging_client(), 3), poll=0.0)
    content = RecordDict({"arrays": ArrayRecord({"weights": Array(np.zeros(2))})})
    messages = [Message(content, node, "train") for node in grid.get_node_ids()]
    replies = {r.metadata.src_node_id: r for r in grid.send_and_receive(messages, timeout=5)}
    assert sorted(replies) == [1000, 1001, 1002]
    assert "its reply cannot be read: KeyError" in replies[1001].error.reason
    assert "a reply cannot be read" in caplog.text


@pytest.mark.parametrize("kind", CONNECTION_ERRORS)
def test_a_superlink_that_cannot_be_reached_is_no_reply(kind):
    grid = Unreadable(averaging_client(), 3)
    grid.error = kind("unreachable")
    message = Message(RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(2))})}), 1001, "train")
    with pytest.raises(kind, match="unreachable"):
        QuorumGrid(grid).send_and_receive([message], timeout=5)


def test_importing_the_package_does_not_import_flower():
    script = "import sys, protocl.federation; print('flwr' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
