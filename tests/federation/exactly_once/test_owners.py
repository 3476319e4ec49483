"""A life belongs to the node that began it; who moves shows a secret, and nobody else can."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message

from protocl import PrototypeMemory
from protocl.federation import ClientData, FederatedPrototypes, InProcessGrid, PrototypeClient
from protocl.federation.client.state import ClientState, StatesOnDisk
from protocl.federation.exactly_once.client import Settled
from protocl.federation.exactly_once.server import name_of_life
from protocl.federation.server.sampling import Options
from protocl.federation.server.state import MergedMemory
from protocl.federation.wire.messages import Contribution, RejectedError
from protocl.io import checkpoint

DIM = 3
EMPTY = PrototypeMemory(DIM, exact=True)


def memory_of(seed: int) -> PrototypeMemory:
    x = torch.randn(5, DIM, generator=torch.Generator().manual_seed(seed))
    return EMPTY.empty_like().update(x, torch.arange(5) % 2)


def settled_client(server: MergedMemory, node: str) -> ClientState:
    """A client of which the server has one contribution."""
    state = ClientState(EMPTY.empty_like())
    state.contribute(memory_of(1), 1)
    exchange(server, state, node)
    return state


def exchange(server: MergedMemory, state: ClientState, node: str) -> None:
    terms = server.known.terms_for(node)
    heard = Settled(str(terms["epoch"]), int(terms["settled"]), int(terms["samples"]))
    state.hear(str(terms["server"]), heard, bool(terms["prove"]))
    for contribution in state.pending:
        server.accept(contribution, client=node)


def test_a_node_cannot_replace_the_client_of_another_whose_lives_it_knows():
    server = MergedMemory(EMPTY)
    state = settled_client(server, "a")
    before = server.memory.copy()
    for epoch, replaces in ((state.life.epoch, ()), ("own", (state.life.epoch,))):
        for secret in ("", "guessed"):
            for seq, kind in ((1, "full"), (2, "full"), (2, "delta")):
                stolen = Contribution(
                    memory_of(9), epoch, seq, kind, replaces=replaces, secret=secret
                )  # type: ignore[arg-type]
                with pytest.raises(RejectedError, match="secret was not shown") as caught:
                    server.accept(stolen, client="b")
                server.refuse(caught.value, client="b", epoch=epoch, seq=seq)
    assert torch.equal(server.memory.sums, before.sums)
    assert {entry.client for entry in server.ledger if entry.outcome == "rejected"} == {"b"}
    assert server.known.refused["b"].startswith("owner:")
    assert "a" not in server.known.refused
    state.contribute(memory_of(2), 2)
    exchange(server, state, "a")
    assert server.contribution_of("a").total == 10


def test_a_client_moves_with_its_secret_and_its_old_node_is_somebody_else():
    server = MergedMemory(EMPTY)
    state = settled_client(server, "a")
    state.contribute(memory_of(2), 2)
    exchange(server, state, "b")
    assert server.clients == ["a"]
    assert server.memory.total == 10
    other = ClientState(EMPTY.empty_like())
    other.contribute(memory_of(3), 1)
    exchange(server, other, "a")
    assert len(server.clients) == 2
    assert server.memory.total == 15


def test_the_secret_leaves_only_for_a_node_that_is_not_known_and_is_kept_as_a_hash(tmp_path):
    server = MergedMemory(EMPTY)
    state = ClientState(EMPTY.empty_like())
    state.contribute(memory_of(1), 1)
    assert [c.secret for c in state.pending] == [state.life.secret]
    exchange(server, state, "a")
    state.contribute(memory_of(2), 2)
    exchange(server, state, "a")
    assert [c.secret for c in state.pending] == [""]
    checkpoint.save(tmp_path / "server", server.state())
    server.ledger.save(tmp_path / "ledger.jsonl")
    kept = (tmp_path / "server").read_bytes() + (tmp_path / "ledger.jsonl").read_bytes()
    assert state.life.secret.encode() not in kept
    assert state.life.epoch not in (tmp_path / "ledger.jsonl").read_text()
    assert {entry.epoch for entry in server.ledger} == {name_of_life(state.life.epoch)}


def test_what_the_server_knew_before_secrets_were_kept_is_bound_to_the_same_nodes():
    server = MergedMemory(EMPTY)
    state = settled_client(server, "a")
    earlier = {name: value for name, value in server.state()["known"].items() if name != "_locks"}
    server.known._locks = {}
    server.known.restore(earlier)
    assert server.known.terms_for("a")["prove"]
    state.contribute(memory_of(2), 2)
    exchange(server, state, "a")
    state.contribute(memory_of(3), 3)
    exchange(server, state, "b")
    assert server.clients == ["a"]
    assert server.memory.total == 15


# -- over messages ------------------------------------------------------------------------------


def load(context: Context) -> ClientData:
    x = torch.randn(4, DIM, generator=torch.Generator().manual_seed(1))
    return ClientData([(x[:2], torch.zeros(2, dtype=torch.int64)), (x[2:], torch.ones(2).long())])


class Thief(InProcessGrid):
    """The second node sends what the first one sent, as the full state of the same life."""

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        header = reply.content.get("header-0")
        if message.metadata.dst_node_id == 1000:
            self.seen = header or self.seen
        elif header is not None and getattr(self, "seen", None) is not None:
            header["epoch"] = self.seen["epoch"]  # type: ignore[index]
            header["seq"], header["secret"] = 7, "guessed"  # type: ignore[index]
        return reply

    seen = None


def test_a_thief_is_refused_by_name_and_the_client_goes_on(tmp_path: Path):
    client = PrototypeClient(load, EMPTY, states=StatesOnDisk(tmp_path))
    strategy = FederatedPrototypes(EMPTY, Options(evaluate=0.0))
    grid = Thief(client.app(), 2)
    strategy.start(grid, ArrayRecord(), num_rounds=3)
    assert strategy.merged.clients == ["1000"]
    assert strategy.memory.total == 4
    refused = [entry for entry in strategy.merged.ledger if entry.outcome == "rejected"]
    assert {entry.client for entry in refused} == {"1001"}
    assert strategy.merged.ledger.reasons() == {"owner": len(refused)}


def test_a_state_on_disk_moves_to_another_node(tmp_path: Path):
    """In a new process; it counts once."""
    client = PrototypeClient(load, EMPTY, states=StatesOnDisk(tmp_path), name=lambda context: "me")
    strategy = FederatedPrototypes(EMPTY, Options(evaluate=0.0))
    strategy.start(InProcessGrid(client.app(), 1), ArrayRecord(), num_rounds=1)
    moved = InProcessGrid(client.app(), 2)
    moved.online = {1001}
    strategy.start(moved, ArrayRecord(), num_rounds=1)
    assert strategy.merged.clients == ["1000"]
    assert strategy.memory.total == 4
