"""A round in which some clients, or all, send second moments that no samples could have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from protocl import PrototypeMemory
from protocl.errors import AllFailedError
from protocl.federation import FederatedPrototypes, InProcessGrid, Options, simulate
from protocl.federation.server.state import same_statistics
from protocl.federation.wire.messages import Contribution, encode
from protocl.federation.wire.npy import array_of

DIM, CLIENTS = 5, 6


def memory_of(client: int, like: PrototypeMemory) -> PrototypeMemory:
    x = torch.randn(9, DIM, generator=torch.Generator().manual_seed(client))
    return like.empty_like().update(x, torch.arange(9) % 2)


def app(like: PrototypeMemory, bad: set[int]) -> ClientApp:
    """Clients of whom some claim that two features go together more than each with itself."""
    clients = ClientApp()

    @clients.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        arrays, header = encode(Contribution(memory_of(client, like), f"e{client}", 1, "full"))
        if client in bad:
            sent = arrays["second"].numpy().copy()
            sent[..., 1] = 3 * np.abs(sent).max()
            arrays["second"] = array_of(sent)
        content = RecordDict({"arrays-0": arrays, "header-0": header})
        content["metrics"] = MetricRecord({"num-examples": 9})
        return Message(content, reply_to=message)

    return clients


@pytest.mark.parametrize("level", ["shared", "full"])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("bad", [{0}, {2, 3}, {0, 1, 3, 4, 5}])
def test_each_is_refused_by_name_and_the_others_count(level, exact, bad):
    like = PrototypeMemory(DIM, level, exact=exact, fingerprint="b")
    strategy, clients = FederatedPrototypes(like, Options(evaluate=0.0)), app(like, bad)
    grid = InProcessGrid(clients, CLIENTS)
    nodes = [str(node) for node in grid.get_node_ids()]
    simulate(strategy, clients, clients=CLIENTS, rounds=1, grid=grid)
    refused = [entry for entry in strategy.merged.ledger if entry.outcome == "rejected"]
    assert {entry.client for entry in refused} == {nodes[client] for client in bad}
    assert all("no samples could have" in entry.reason for entry in refused)
    expected = like.empty_like()
    for client in sorted(set(range(CLIENTS)) - bad):
        expected.merge(memory_of(client, like))
    if exact:
        assert same_statistics(strategy.memory, expected)
    assert torch.allclose(strategy.memory.means, expected.means)
    assert strategy.memory.total == expected.total


def test_a_round_of_nothing_else_ends_with_the_reason():
    like = PrototypeMemory(DIM, "shared", exact=True, fingerprint="b")
    clients = app(like, set(range(CLIENTS)))
    with pytest.raises(AllFailedError, match="no samples could have"):
        simulate(
            FederatedPrototypes(like, Options(evaluate=0.0)), clients, clients=CLIENTS, rounds=1
        )
