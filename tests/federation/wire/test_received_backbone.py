"""The server distributes the backbone; clients use no weights but those it announced."""

from __future__ import annotations

import copy

import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from torch import nn

from protocl import PrototypeMemory
from protocl.backbones import BackboneConfig, build_backbone, fingerprint
from protocl.errors import FingerprintError
from protocl.federation import (
    ClientData,
    FederatedPrototypes,
    InProcessGrid,
    Options,
    PrototypeClient,
    simulate,
)
from protocl.federation.config.compose import load
from protocl.federation.runner.run import run_federation
from protocl.federation.server.state import same_statistics
from protocl.federation.wire.compat import name_message
from protocl.federation.wire.received_backbone import (
    ReceivedBackbone,
    backbone_record,
    without_weights,
)
from protocl.heads import NearestMean
from protocl.runner.folders import open_run


def backbone(seed: int = 0) -> nn.Module:
    return build_backbone(BackboneConfig(name="mlp", width=16), (6,), seed)


def context() -> Context:
    return Context(1, 1, {}, RecordDict(), {})


def message(module: nn.Module) -> RecordDict:
    return RecordDict({"backbone": backbone_record(module)})


def samples(node: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(node)
    return torch.randn(20, 6, generator=generator), torch.arange(20) % 4


def client_data(context: Context) -> ClientData:
    x, y = samples(int(context.node_config["partition-id"]))
    return ClientData([(x[:10], y[:10]), (x[10:], y[10:])], test=(x, y))


def test_weights_arrive_bit_for_bit():
    module = nn.Sequential(backbone(3), nn.BatchNorm1d(8))
    module(torch.randn(5, 6))  # counters of batches travel too
    copy_of_it = ReceivedBackbone(without_weights(module))
    node = context()
    copy_of_it.require(fingerprint(module), message(module), node)
    assert fingerprint(copy_of_it.module) == fingerprint(module)
    assert len(message(module).array_records["backbone"]) == 1
    # A process that starts anew finds them in the client's state.
    again = ReceivedBackbone(without_weights(module))
    again.require(fingerprint(module), RecordDict(), node)
    assert fingerprint(again.module) == fingerprint(module)


def test_other_weights_than_announced_are_refused_and_not_kept():
    node, received = context(), ReceivedBackbone(without_weights(backbone()))
    with pytest.raises(FingerprintError, match="announced was"):
        received.require(fingerprint(backbone(1)), message(backbone(2)), node)
    with pytest.raises(FingerprintError, match="has not been received"):
        received.require(fingerprint(backbone(1)), RecordDict(), node)


def test_other_architectures_and_noise_are_refused():
    received = ReceivedBackbone(without_weights(backbone()))
    wide = build_backbone(BackboneConfig(name="mlp", width=20), (6,), 0)
    noise = {"backbone": ArrayRecord({"weights": Array(torch.arange(9).numpy())})}
    for content in (message(wide), RecordDict(noise), RecordDict({"backbone": ArrayRecord()})):
        with pytest.raises(FingerprintError, match="do not fit"):
            received.require("0" * 64, content, context())


def test_a_client_may_insist_on_one_backbone():
    trusted = fingerprint(backbone(1))
    received = ReceivedBackbone(without_weights(backbone()), trusted=trusted)
    received.require(trusted, message(backbone(1)), context())
    with pytest.raises(FingerprintError, match="this client trusts"):
        received.require(fingerprint(backbone(2)), message(backbone(2)), context())


def federate(module: nn.Module, client: PrototypeClient, grid: InProcessGrid, rounds: int):
    empty = PrototypeMemory(8, exact=True, fingerprint=fingerprint(module))
    strategy = FederatedPrototypes(empty, Options(), backbone=module)
    simulate(strategy, client.app(), clients=5, rounds=rounds, grid=grid)
    return strategy


def test_every_node_gets_the_backbone_once_also_a_late_joiner():
    module = backbone(7)
    received = ReceivedBackbone(without_weights(module))
    client = PrototypeClient(
        client_data, PrototypeMemory(8, exact=True), backbone=received, head=NearestMean()
    )
    grid = InProcessGrid(client.app(), 5, isolate=True)
    late = max(grid.online)
    grid.online.remove(late)
    strategy = federate(module, client, grid, 2)
    grid.online.add(late)
    simulate(strategy, client.app(), clients=5, rounds=1, grid=grid)
    weights = sum(len(a.data) for a in backbone_record(module).values())
    sizes = [row[4] for row in strategy.traffic.rows if row[2:4] == ("train", "down")]
    assert sum(size > weights for size in sizes) == 5
    x, y = (torch.cat(parts) for parts in zip(*map(samples, range(5)), strict=True))
    whole = strategy.empty.empty_like()
    for node in range(5):  # as the clients encode: in chunks
        for rows in (slice(0, 10), slice(10, 20)):
            own_x, own_y = samples(node)
            whole.update(received.encode(own_x[rows]), own_y[rows])
    assert strategy.memory.total == len(y) == len(x)
    assert same_statistics(strategy.memory, whole)
    assert strategy.evaluations[3].total == 100


def test_a_client_that_lost_the_backbone_gets_it_again():
    module = backbone(7)
    received = ReceivedBackbone(without_weights(module))
    client = PrototypeClient(client_data, PrototypeMemory(8, exact=True), backbone=received)
    grid = InProcessGrid(client.app(), 5, isolate=True)
    strategy = federate(module, client, grid, 1)
    for node in grid._contexts.values():
        node.state.clear()
    received._loaded = ""
    simulate(strategy, client.app(), clients=5, rounds=1, grid=grid)
    assert strategy.merged.ledger.outcomes(2)["failed"] > 0
    simulate(strategy, client.app(), clients=5, rounds=1, grid=grid)
    assert strategy.merged.ledger.outcomes(3)["failed"] == 0
    assert strategy.memory.total == 100


def test_who_answers_late_what_another_strategy_asked_gets_the_backbone():
    module = backbone(7)
    received = ReceivedBackbone(without_weights(module))
    client = PrototypeClient(client_data, PrototypeMemory(8, exact=True), backbone=received)

    class Late(InProcessGrid):
        def collect_late(self):
            return [Message(RecordDict(), reply_to=earlier)]

    grid = Late(client.app(), 5, isolate=True)
    earlier = Message(RecordDict(), min(grid.online), MessageType.TRAIN)
    name_message(earlier, "asked before")
    strategy = federate(module, client, grid, 1)
    assert strategy.merged.ledger.outcomes(1)["failed"] == 0
    assert strategy.memory.total == 50


def test_the_servers_backbone_must_be_the_one_it_merges():
    with pytest.raises(ValueError, match="fingerprint"):
        FederatedPrototypes(PrototypeMemory(8, fingerprint="other"), backbone=backbone())


def test_distributing_changes_no_bit_of_the_result(tmp_path):
    words = ["federation=digits", "backbone=mlp", f"output={tmp_path}", f"cache={tmp_path}"]
    results = []
    for distribute in ("true", "false"):
        (config,) = load([*words, f"method.distribute={distribute}"])
        results.append(run_federation(config, open_run(config)))
    sent, given = results
    assert sent["federation"]["rounds"][0]["bytes_down"] > 10 * 4 * 64 * 256
    assert sent["backbone"] == given["backbone"]
    assert abs(sent["metrics"]["last_accuracy"] - given["metrics"]["last_accuracy"]) < 0.005


def test_zeroed_copies_leave_the_original_alone():
    module = backbone(1)
    before = copy.deepcopy(module.state_dict())
    assert all(not tensor.any() for tensor in without_weights(module).state_dict().values())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
