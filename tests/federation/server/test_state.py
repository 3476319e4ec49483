"""The merged memory is the exact sum, whatever happens to messages, clients and server."""

from __future__ import annotations

import contextlib
import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from protocl import PrototypeMemory
from protocl.checks import assert_same
from protocl.errors import DataError, FingerprintError
from protocl.federation.client.state import ClientState, StatesInProcess, StatesOnDisk
from protocl.federation.exactly_once.client import Settled
from protocl.federation.exactly_once.server import PATIENCE
from protocl.federation.server.state import MergedMemory, same_statistics
from protocl.federation.wire.limits import Limits
from protocl.federation.wire.messages import Contribution, RejectedError
from protocl.federation.wire.traffic import Ledger, Traffic
from protocl.io import checkpoint

DIM = 3


def empty(level="mean", exact=True) -> PrototypeMemory:
    return PrototypeMemory(DIM, level, exact=exact, fingerprint="b")


def samples(seed, classes=(0, 1, 2)):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes)[torch.randint(len(classes), (7,), generator=generator)]
    return torch.randn(7, DIM, generator=generator), labels


def memory_of(*seeds, level="mean", classes=(0, 1, 2)) -> PrototypeMemory:
    memory = empty(level)
    for seed in seeds:
        memory.update(*samples(seed, classes))
    return memory


def client_with(*seeds) -> ClientState:
    state = ClientState(empty())
    for number, seed in enumerate(seeds, start=1):
        state.contribute(memory_of(seed), number)
    return state


def deliver(server: MergedMemory, state: ClientState, client: str = "a") -> None:
    for contribution in state.pending:
        try:
            server.accept(contribution, client=client)
        except RejectedError as error:
            server.refuse(error, client=client, epoch=contribution.epoch, seq=contribution.seq)


def test_a_repeated_contribution_is_merged_once():
    server, client = MergedMemory(empty()), client_with(1)
    deliver(server, client)
    deliver(server, client)
    assert same_statistics(server.memory, memory_of(1))
    assert server.ledger.outcomes() == {"merged": 1, "duplicate": 1}


def test_a_repeated_contribution_from_a_restarted_node_is_merged_once():
    """A node without authentication comes back under another id; its state is on its disk."""
    server, client = MergedMemory(empty()), client_with(1)
    deliver(server, client, "node-1")
    client.contribute(memory_of(2), 2)
    deliver(server, client, "node-77")
    assert same_statistics(server.memory, memory_of(1, 2))
    assert server.clients == ["node-1"]


def test_a_client_that_lost_its_state_replaces_what_it_sent_before():
    server = MergedMemory(empty())
    deliver(server, client_with(1, 2))
    deliver(server, client_with(1, 2, 3))  # another epoch, the same data and more
    assert same_statistics(server.memory, memory_of(1, 2, 3))


def test_a_client_that_lost_its_state_is_refused_where_contributions_are_not_kept():
    server = MergedMemory(empty(), keep_contributions=False)
    deliver(server, client_with(1))
    deliver(server, client_with(1))
    assert same_statistics(server.memory, memory_of(1))
    assert server.ledger.reasons() == {"sequence": 1}


def test_a_gap_is_refused_and_filled_by_the_full_state():
    server, client = MergedMemory(empty()), client_with(1, 2, 3)
    # A server that was set back does not know of 1 and 2.
    client.life.pending = client.life.pending[2:]
    deliver(server, client)
    assert len(server.memory) == 0
    assert server.known.wants_full == {"a"}
    client.send_everything()
    deliver(server, client)
    assert same_statistics(server.memory, memory_of(1, 2, 3))
    assert not server.known.wants_full


def test_many_unacknowledged_contributions_become_one():
    client = client_with(*range(30))
    assert len(client.pending) <= 8
    server = MergedMemory(empty())
    deliver(server, client)
    assert same_statistics(server.memory, memory_of(*range(30)))


events = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["learn", "send", "late", "arrive", "snapshot", "restored from it", "moves",
                         "swaps", "loses its state", "server restarts", "server set back"]),
    ),
    max_size=40,
)  # fmt: skip


class World:
    """Three clients and a server between which anything may go wrong."""

    def __init__(self) -> None:
        self.server = MergedMemory(empty())
        self.saved = [copy.deepcopy(self.server.state())]
        self.clients = [ClientState(empty()) for _ in range(3)]
        self.snapshots = copy.deepcopy(self.clients)
        self.nodes = ["0", "1", "2"]
        self.data: list[list[int]] = [[], [], []]
        self.late: list[tuple[int, list[Contribution]]] = []
        self.round = 0

    def happen(self, client: int, event: str) -> None:
        if event == "learn":
            self.data[client].append(10 * len(self.data[client]) + client)
        elif event == "send":
            self.exchange(client)
        elif event == "late":
            self.late.append((client, list(self.clients[client].pending)))
        elif event == "arrive":
            for sender, contributions in self.late:
                self.deliver(sender, contributions)
            self.late = []
        elif event == "snapshot":
            self.snapshots[client] = copy.deepcopy(self.clients[client])
        elif event == "restored from it":
            self.clients[client] = copy.deepcopy(self.snapshots[client])
            self.clients[client].life.take_up()
            self.late = [sent for sent in self.late if sent[0] != client]
        elif event == "moves":  # a SuperNode without a key is another node when it starts again
            self.nodes[client] = f"{self.nodes[client]}'"
            self.clients[client].life.take_up()
        elif event == "swaps":
            other = (client + 1) % 3
            self.nodes[client], self.nodes[other] = self.nodes[other], self.nodes[client]
            self.clients[client].life.take_up()
            self.clients[other].life.take_up()
        elif event == "loses its state":
            self.clients[client] = self.snapshots[client] = ClientState(empty())
        elif event == "server restarts":
            self.saved.append(copy.deepcopy(self.server.state()))
            self.restore(self.saved[-1])
        elif event == "server set back":
            self.restore(self.saved[0])

    def is_known(self, client: int) -> bool:
        life = self.clients[client].life
        heard = self.server.known.settled_of(self.nodes[client]).epoch
        return heard in (life.epoch, *life.replaces)

    def restore(self, state) -> None:
        self.server = MergedMemory(empty())
        self.server.restore(state)
        self.saved = [copy.deepcopy(self.server.state())]

    def count(self, client: int) -> None:
        """As a client does: all that it has not counted yet is one contribution."""
        state, data = self.clients[client], self.data[client]
        if state.counted < len(data):
            state.contribute(memory_of(*data[state.counted :]), len(data))

    def exchange(self, client: int) -> None:
        state, node = self.clients[client], self.nodes[client]
        settled = self.server.known.settled_of(node)
        state.hear(self.server.known.identity, settled)
        self.count(client)
        if not settled.epoch or node in self.server.known.wants_full:
            state.send_everything()
        self.deliver(client, state.pending)

    def deliver(self, client: int, contributions: list[Contribution]) -> None:
        for c in contributions:
            try:
                self.server.accept(c, client=self.nodes[client], round_number=self.round)
            except RejectedError as error:
                self.server.refuse(error, client=self.nodes[client], epoch=c.epoch, seq=c.seq)


def check_that_it_heals(history: list[tuple[int, str]]) -> None:
    world, moved, unheard = World(), set(), set()
    forgets = any(event == "server set back" for _, event in history)
    for client, event in history:
        if event in ("moves", "swaps") and {client, (client + 1) % 3} & unheard:
            continue  # whoever loses state and node is another client to the server
        if event == "swaps" and (
            forgets or not (world.is_known(client) and world.is_known((client + 1) % 3))
        ):
            continue  # to the server, whoever it never heard is the client of its node
        if event == "loses its state" and client in moved:
            heard = world.server.known.settled_of(world.nodes[client]).epoch
            if forgets or heard != world.clients[client].life.epoch:
                continue
        if event == "loses its state":
            unheard.add(client)
        elif event in ("moves", "swaps") and not (forgets and unheard):
            moved |= {client, (client + 1) % 3}
        elif event == "send":
            unheard.discard(client)
        world.happen(client, event)
    for _ in range(PATIENCE + 4):  # without anything new
        world.round += 1
        for client in range(3):
            world.exchange(client)
    seeds = [seed for own in world.data for seed in own]
    assert same_statistics(world.server.memory, memory_of(*seeds))


@settings(deadline=None, max_examples=200)
@given(events)
def test_after_any_history_a_few_exchanges_give_the_exact_sum(history):
    check_that_it_heals(history)


@pytest.mark.slow
@settings(deadline=None, max_examples=20_000)
@given(events)
def test_after_any_of_many_histories_a_few_exchanges_give_the_exact_sum(history):
    check_that_it_heals(history)


def test_who_takes_over_a_node_is_another_client():
    server, mover, newcomer = MergedMemory(empty()), client_with(1), client_with(2)
    deliver(server, mover, "x")
    mover.contribute(memory_of(3), 2)
    deliver(server, mover, "y")
    for _ in range(3):
        for state, node in ((newcomer, "x"), (mover, "y")):
            state.hear(server.known.identity, server.known.settled_of(node))
            deliver(server, state, node)
        assert same_statistics(server.memory, memory_of(1, 2, 3))
    assert len(server.clients) == 2
    server.forget_client("x")
    assert server.known.is_forgotten("y")
    assert not server.known.is_forgotten("x")


def test_a_client_that_lost_its_state_after_it_moved_is_counted_once():
    server, client = MergedMemory(empty()), client_with(1)
    deliver(server, client, "x")
    client.contribute(memory_of(2), 2)
    deliver(server, client, "y")
    deliver(server, client_with(1, 2), "y")
    assert same_statistics(server.memory, memory_of(1, 2))


def test_an_empty_epoch_belongs_to_nobody():
    server = MergedMemory(empty())
    with pytest.raises(RejectedError, match="epoch=''"):
        server.accept(Contribution(memory_of(1), "", 1, "full"), client="a")
    assert not server.known.is_forgotten("b")


def test_what_one_client_alone_would_overflow_is_refused():
    """Another one brings the whole back, so that the merged sum never leaves 64 bits."""
    server = MergedMemory(empty(), limits=Limits(max_clients=1))
    for seq in range(1, 12):
        for client, sign in (("a", 1), ("b", -1)):
            memory = memory_of(1)
            memory.get_buffer("sum").fill_(sign * 2**61)
            kind = "full" if seq == 1 else "delta"
            with contextlib.suppress(RejectedError):
                server.accept(Contribution(memory, client, seq, kind), client=client)
    assert server.ledger.outcomes() == {"merged": 6}
    assert sum(server.contribution_of(c).total for c in "ab") == server.memory.total


# -- unlearning ---------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["mean", "diagonal", "shared", "full"])
def test_a_forgotten_client_leaves_no_bit_behind(level):
    with_it, without = MergedMemory(empty(level)), MergedMemory(empty(level))
    for name, seed, classes in (("a", 1, (0, 1)), ("b", 2, (1, 2)), ("c", 3, (0, 2))):
        for server in (with_it, without):
            if server is with_it or name != "b":
                memory = memory_of(seed, level=level, classes=classes)
                server.accept(Contribution(memory, name, 1, "full"), client=name)
    with_it.forget_client("b")
    assert same_statistics(with_it.memory, without.memory)
    assert with_it.clients == ["a", "c"]
    assert [e.classes for e in with_it.ledger if e.client == "b"] == [()]


def test_a_forgotten_client_stays_forgotten():
    server, client = MergedMemory(empty()), client_with(1)
    deliver(server, client)
    server.forget_client("a")
    client.contribute(memory_of(2), 2)
    deliver(server, client)
    assert len(server.memory) == 0
    assert server.ledger.reasons() == {"forgotten": 1}


@pytest.mark.parametrize("level", ["mean", "diagonal", "full"])
def test_a_forgotten_class_leaves_no_bit_behind(level):
    server, without = MergedMemory(empty(level)), empty(level)
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        memory = memory_of(seed, level=level)
        if name == "c":
            server.forget_classes([1])
        server.accept(Contribution(memory, name, 1, "full"), client=name)
        without.merge(memory.subset([0, 2]))
    assert same_statistics(server.memory, without)
    assert all(1 not in entry.classes for entry in server.ledger)
    server.forget_client("b")
    assert 1 not in server.memory


def test_forgetting_says_what_it_cannot_do():
    server = MergedMemory(empty("shared"), keep_contributions=False)
    server.accept(Contribution(memory_of(1, level="shared"), "e", 1, "full"), client="a")
    with pytest.raises(ValueError, match="keep_contributions=true"):
        server.forget_client("a")
    with pytest.raises(ValueError, match="cannot be split by class"):
        server.forget_classes(0)
    with pytest.raises(KeyError, match="client 'x' contributed nothing"):
        MergedMemory(empty()).forget_client("x")


# -- overflow -----------------------------------------------------------------------------------


def test_a_sum_that_would_overflow_is_rejected_and_changes_nothing():
    server = MergedMemory(empty(), limits=Limits(max_clients=1))
    big = memory_of(1)
    big.get_buffer("sum").fill_(2**62)
    server.accept(Contribution(big, "a", 1, "full"), client="a")
    before = server.memory.copy()
    with pytest.raises(RejectedError) as caught:
        server.accept(Contribution(big.copy(), "b", 1, "full"), client="b")
    assert caught.value.reason == "overflow"
    assert same_statistics(server.memory, before)
    assert server.clients == ["a"]


# -- on disk ------------------------------------------------------------------------------------


def test_server_state_survives_a_file(tmp_path):
    server, client = MergedMemory(empty()), client_with(1, 2)
    deliver(server, client)
    checkpoint.save(tmp_path / "s", server.state())
    again = MergedMemory(empty())
    again.restore(checkpoint.load(tmp_path / "s"))
    deliver(again, client)
    assert same_statistics(again.memory, memory_of(1, 2))
    assert again.ledger.outcomes() == {"merged": 2, "duplicate": 2}
    again.forget_client("a")
    assert len(again.memory) == 0


def test_server_state_of_other_statistics_is_refused():
    with pytest.raises(ValueError, match="level is shared here"):
        MergedMemory(empty("shared")).restore(MergedMemory(empty()).state())


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("level", ["mean", "shared", "full"])
def test_client_state_survives_a_file(tmp_path, level, exact):
    store, template = StatesOnDisk(tmp_path), empty(level, exact)
    delta = template.empty_like().update(*samples(1))
    with store.open("a", template) as state:
        state.contribute(delta, 1)
        state.contribute(delta, 2)
        state.hear("server", Settled(state.life.epoch, 1, delta.total))
        first = state
    with store.open("a", template) as state:
        assert (state.life.epoch, state.life.seq, state.counted) == (first.life.epoch, 2, 2)
        assert same_statistics(state.memory, delta + delta)
        (pending,) = state.pending
        assert (pending.seq, pending.kind) == (2, "delta")
        assert same_statistics(pending.memory, delta)


def test_client_state_of_an_earlier_version_is_read(tmp_path):
    store = StatesOnDisk(tmp_path)
    with store.open("a", empty()) as state:
        state.contribute(memory_of(1), 1)
        state.contribute(memory_of(2), 2)
    (path,) = tmp_path.glob("*.safetensors")
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    values = json.loads(header["state"])
    for name in ("shares", "samples", "replaces", "server", "acknowledged"):
        del values[name]
    header |= {"format": "protocl-client-1", "state": json.dumps(values)}
    save_file(load_file(path), path, metadata=header)
    with store.open("a", empty()) as again:
        assert again.life == state.life
        server = MergedMemory(empty())
        deliver(server, again)
    assert same_statistics(server.memory, memory_of(1, 2))


def test_client_state_is_not_saved_when_the_work_failed(tmp_path):
    store = StatesOnDisk(tmp_path)
    with contextlib.suppress(InterruptedError), store.open("a", empty()) as state:
        state.contribute(memory_of(1), 1)
        raise InterruptedError
    with store.open("a", empty()) as state:
        assert (state.life.seq, state.counted) == (0, 0)


def test_client_state_of_another_backbone_is_refused(tmp_path):
    store = StatesOnDisk(tmp_path)
    with store.open("a", empty()) as state:
        state.contribute(memory_of(1), 1)
    other = PrototypeMemory(DIM, exact=True, fingerprint="other")
    with pytest.raises(FingerprintError), store.open("a", other):
        pass


def test_damaged_client_state_is_reported(tmp_path):
    store = StatesOnDisk(tmp_path)
    with store.open("a", empty()) as state:
        state.contribute(memory_of(1), 1)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match="damaged"), store.open("a", empty()):
        pass


def test_states_in_process_are_kept_by_client():
    store = StatesInProcess()
    with store.open("a", empty()) as state:
        state.contribute(memory_of(1), 1)
    with store.open("a", empty()) as state:
        assert state.life.seq == 1
    with store.open("b", empty()) as state:
        assert state.life.seq == 0


def test_ledger_and_traffic_survive_a_file(tmp_path):
    server = MergedMemory(empty())
    deliver(server, client_with(1, 2))
    server.ledger.save(tmp_path / "ledger.jsonl")
    assert list(Ledger.load(tmp_path / "ledger.jsonl")) == list(server.ledger)
    counts = sum(sum(entry.counts) for entry in server.ledger)
    assert counts == server.memory.total
    traffic = Traffic()
    traffic.add(1, "a", "train", "up", 10)
    traffic.add(2, "a", "train", "down", 3)
    traffic.save(tmp_path / "traffic.csv")
    assert traffic.total("up") == 10
    assert traffic.total("up", 2) == 0
    assert (tmp_path / "traffic.csv").read_text().splitlines()[1] == "1,a,train,up,10"


def test_merging_does_not_change_what_was_sent():
    server, client = MergedMemory(empty()), client_with(1, 2)
    before = [contribution.memory.copy() for contribution in client.pending]
    deliver(server, client)
    for contribution, twin in zip(client.pending, before, strict=True):
        assert_same(contribution.memory, twin, "a contribution that was merged")


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("level", ["mean", "diagonal", "shared", "full"])
def test_a_state_in_this_process_comes_back_with_every_bit(level, exact):
    """Between two messages it is arrays alone."""
    like, store = PrototypeMemory(4, level, exact=exact), StatesInProcess(awake=0)
    expected = ClientState(like.empty_like())
    for number, classes in enumerate((0, 3, 40)):  # none at first
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(classes, 4, generator=generator, dtype=torch.float64) * 100
        delta = like.empty_like().update(x, torch.arange(classes))
        delta.fingerprint = "b"
        for state in (expected, None):
            if state is not None:
                state.contribute(delta, number)
                continue
            with store.open("a", like) as opened:
                opened.contribute(delta, number)
    huge = like.empty_like().update(torch.ones(1, 4), torch.tensor([2**62]))
    if exact and level != "mean":
        huge.get_buffer("second").fill_(2**62)  # the sum has two words
    with store.open("a", like) as opened:
        for _ in range(3):
            opened.contribute(huge, 3)
            expected.contribute(huge, 3)
    with store.open("a", like) as opened:
        assert same_statistics(opened.memory, expected.memory)
        assert opened.memory.fingerprint == "b"
        assert opened.memory.rounded == expected.memory.rounded
        assert len(opened.pending) == len(expected.pending) == 5
        for mine, theirs in zip(opened.pending, expected.pending, strict=True):
            assert same_statistics(mine.memory, theirs.memory)
            assert (mine.seq, mine.kind) == (theirs.seq, theirs.kind)


@pytest.mark.parametrize("awake", [0, 1])
def test_what_a_block_did_that_raises_stays_in_this_process(awake):
    like, store = PrototypeMemory(2, exact=True), StatesInProcess(awake)
    delta = like.empty_like().update(torch.ones(3, 2), torch.zeros(3).long())
    with contextlib.suppress(ZeroDivisionError), store.open("a", like) as state:
        state.contribute(delta, 1)
        raise ZeroDivisionError
    with store.open("a", like) as state:
        assert (state.memory.total, state.counted, len(state.pending)) == (3, 1, 1)


@pytest.mark.parametrize("awake", [0, 1])
def test_what_a_users_client_class_puts_into_a_state_stays_in_this_process(awake):
    class Own(ClientState):
        pass

    like, store = PrototypeMemory(2, exact=True), StatesInProcess(awake)
    with store.open("a", like) as state:
        state.__class__, state.steps = Own, 7
    with store.open("a", like) as state:
        assert isinstance(state, Own)
        assert state.steps == 7


def test_a_refusal_is_short_whatever_it_quotes():
    # A shape of 3,000 numbers fits an array's header; 16 messages of it a round filled the ledger.
    server = MergedMemory(empty())
    server.refuse(RejectedError("shape", f"its shape is {(1,) * 3000}"), client="n", seq=1)
    (entry,) = server.ledger
    assert entry.reason.startswith("shape: its shape is (1, 1,")
    assert len(entry.reason) <= 500
    assert len(server.known.refused["n"]) < 600
