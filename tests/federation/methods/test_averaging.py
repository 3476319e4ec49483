"""Federated averaging: weights as one vector, the weighted mean, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from protocl.backbones.base import Classifier
from protocl.errors import ConfigError, DataError
from protocl.federation import ClientData, InProcessGrid
from protocl.federation.client.state import StatesInProcess
from protocl.federation.config import FederationConfig, FederationSetup
from protocl.federation.config.compose import load
from protocl.federation.methods.averaging import (
    WeightAveraging,
    WeightClient,
    read_weights,
    weights_record,
)
from protocl.federation.methods.fedavg import FedAvgConfig
from protocl.federation.methods.network import set_weights, weights_of
from protocl.federation.runner.run import FederatedRun, run_federation
from protocl.runner.context import RunContext
from protocl.runner.folders import open_run


def samples(client: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(client)
    count = 4 * (client + 1) if client < 3 else 0
    x = torch.randn(count, 5, generator=generator)
    return x, torch.randint(0, 3, (count,), generator=generator)


def setup() -> FederationSetup:
    return FederationSetup(
        load=lambda context: ClientData([samples(int(context.node_config["partition-id"]))]),
        backbone=nn.Identity(), feature_dim=5, n_classes=3, fingerprint="", seed=0,
        federation=FederationConfig(clients=4), states=StatesInProcess(), checkpoints=Path(),
    )  # fmt: skip


def test_weights_survive_the_vector_and_batch_counters_are_left_out():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    network(torch.randn(8, 3))
    weights = weights_of(network)
    assert len(weights) == 3 * 4 + 4 + 4 * 4
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    set_weights(other, weights)
    assert torch.equal(weights_of(other), weights)
    assert int(other[1].num_batches_tracked) == 0
    with pytest.raises(DataError, match="same settings"):
        set_weights(other, weights[1:])


def test_one_round_is_the_weighted_mean_of_local_training():
    """One full batch and one epoch: a step of gradient descent at each client, by hand."""
    config = FedAvgConfig(batch_size=100, lr=0.5)
    network = config.build_network(setup())
    strategy = WeightAveraging(setup(), len(weights_of(network)))
    app = ClientApp()
    app.train()(WeightClient(setup(), network, config).train)
    grid = InProcessGrid(app, 4, isolate=True)
    messages = strategy.configure_train(1, weights_record(network), ConfigRecord(), grid)
    averaged, metrics = strategy.aggregate_train(1, grid.send_and_receive(messages))
    expected = torch.zeros(18, dtype=torch.float64)
    for client in range(3):  # the fourth has no samples
        x, y = samples(client)
        weight = torch.zeros(3, 5, requires_grad=True)
        bias = torch.zeros(3, requires_grad=True)
        nn.functional.cross_entropy(x @ weight.T + bias, y).backward()
        step = torch.cat([-0.5 * weight.grad.reshape(-1), -0.5 * bias.grad])
        expected += len(y) / 24 * step
    assert averaged is not None
    assert metrics is not None
    torch.testing.assert_close(read_weights(averaged).double(), expected, rtol=1e-5, atol=1e-7)


def test_replies_that_would_spoil_the_average_are_left_out():
    grid = InProcessGrid(lambda message, context: None, 4)  # type: ignore[arg-type]
    network = Classifier(nn.Identity(), nn.Linear(5, 3))
    strategy = WeightAveraging(setup(), 18)
    sent = strategy.configure_train(1, weights_record(network), ConfigRecord(), grid)
    good = torch.ones(18)
    vectors = [good, good[1:], torch.full((18,), float("nan"))]
    replies = []
    for message, vector in zip(sent, vectors, strict=False):
        module = nn.Module()
        module.register_buffer("weights", vector)
        content = {"arrays": weights_record(module), "metrics": MetricRecord({"num-examples": 9})}
        replies.append(Message(RecordDict(content), reply_to=message))
    empty = {"arrays": ArrayRecord(), "metrics": MetricRecord({"num-examples": 9})}
    replies.append(Message(RecordDict(empty), reply_to=sent[3]))
    averaged, _ = strategy.aggregate_train(1, replies)
    assert averaged is not None
    assert torch.equal(read_weights(averaged), good)
    assert strategy.aggregate_train(1, replies[1:]) == (None, None)


@pytest.mark.parametrize("huge", [float("inf"), 3e38, -1.1e6])
def test_one_huge_weight_spoils_nothing_for_the_others(huge):
    """Two of 3e38 make the average infinite, one of 1e30 leaves nothing of the rest."""
    grid = InProcessGrid(lambda message, context: None, 2)  # type: ignore[arg-type]
    network = Classifier(nn.Identity(), nn.Linear(5, 3))
    strategy = WeightAveraging(setup(), 18)
    sent = strategy.configure_train(1, weights_record(network), ConfigRecord(), grid)
    replies = []
    for message, value in zip(sent, (1.0, huge), strict=False):
        module = nn.Module()
        module.register_buffer("weights", torch.ones(18).index_fill(0, torch.tensor([3]), value))
        content = {"arrays": weights_record(module), "metrics": MetricRecord({"num-examples": 9})}
        replies.append(Message(RecordDict(content), reply_to=message))
    averaged, _ = strategy.aggregate_train(1, replies)
    assert averaged is not None
    assert torch.equal(read_weights(averaged), torch.ones(18))


def federate(tmp_path, *words):
    (config,) = load(["federation=digits", f"output={tmp_path}", *words])
    return config, open_run(config)


def test_fedavg_then_nearest_mean_exchanges_prototypes_of_the_trained_network(tmp_path):
    config, folder = federate(
        tmp_path, "method=fedavg_prototypes", "rounds=4", "evaluate=0.5", "method.train=backbone",
        "backbone=mlp", "partition=iid", "method.local_epochs=2",
    )  # fmt: skip
    run = FederatedRun(RunContext("federation", config, folder))
    result = run.finish()
    *training, exchange = result["federation"]["rounds"]
    assert exchange["accuracy"] > 0.8
    assert exchange["bytes_up"] < training[0]["bytes_up"]
    memory = run.method.memory
    assert memory is not None
    assert memory.total == result["benchmark"]["n_train"]
    # Clients encoded with the averaged weights, which they got from the server.
    network = run.method.network.backbone  # type: ignore[attr-defined]
    expected = memory.empty_like().update(network(run.data.x_train).detach(), run.data.y_train)
    torch.testing.assert_close(memory.means, expected.means, rtol=0, atol=1e-4)
    assert result["federation"]["contributions"] == {"merged": 10}


def test_what_is_trained_is_a_choice(tmp_path):
    with pytest.raises(ConfigError, match=r"train=all: expected head, projection or backbone"):
        federate(tmp_path, "method=fedavg", "method.train=all")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rounds=3"], "expected at least 1, and fewer than rounds=3"),
        (["method.train=head"], "no feature map"),
        (["resume=true"], None),
    ],
)
def test_two_phases_need_sense(tmp_path, words, message):
    config, folder = federate(tmp_path, "method=fedavg_prototypes", "rounds=5", *words)
    if message is None:  # nothing to resume is no error
        assert run_federation(config, folder)["status"] == "complete"
        return
    with pytest.raises(ConfigError, match=message):
        run_federation(config, folder)
