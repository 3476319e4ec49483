"""Exactly once, whatever happens to messages, clients, their copies and the server.

The hypothesis seeds are 20261 (200 sequences) and 20262 (10,000, slow), 60 steps each at most.
"""

from __future__ import annotations

import ast
import copy
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from protocl.federation.exactly_once import client as client_side
from protocl.federation.exactly_once.server import PATIENCE, KnownClients
from tests.federation.exactly_once.world import Process, Reply, Sent, State, World

which = st.integers(0, 1_000_000)


class Federation(RuleBasedStateMachine):
    """Any interleaving; at quiescence what each client's present state covers counts once."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(0)

    @initialize(clients=st.integers(1, 3), lives=st.sampled_from([3, 16]))
    def begin(self, clients: int, lives: int) -> None:
        self.lives = pytest.MonkeyPatch()
        self.lives.setattr(client_side, "MAX_LIVES", lives)
        self.world = World(clients)

    def teardown(self) -> None:
        if self.world.processes:
            check_quiescence(self.world)
            self.lives.undo()

    def process(self, number: int) -> Process:
        return self.world.processes[number % len(self.world.processes)]

    # -- what a client does -----------------------------------------------------------------

    @rule(p=which)
    def learns(self, p: int) -> None:
        self.world.learn(self.process(p))

    @rule(p=which)
    def exchanges(self, p: int) -> None:
        reply = self.world.answer(self.world.ask(self.process(p)))
        assert reply is not None
        self.world.server.take(reply)

    @rule()
    def round(self) -> None:
        self.world.round()

    @rule(p=which)
    def is_asked(self, p: int) -> None:
        self.world.requests.append(self.world.ask(self.process(p)))

    @precondition(lambda self: self.world.requests)
    @rule(r=which, repeated=st.booleans())
    def answers(self, r: int, repeated: bool) -> None:
        requests = self.world.requests
        request = requests[r % len(requests)] if repeated else requests.pop(r % len(requests))
        reply = self.world.answer(request)
        if reply is not None:
            self.world.replies.append(reply)

    # -- what happens to messages -----------------------------------------------------------

    @precondition(lambda self: self.world.replies)
    @rule(r=which, repeated=st.booleans(), overflows=st.sampled_from([False, False, True]))
    def arrives(self, r: int, repeated: bool, overflows: bool) -> None:
        replies = self.world.replies
        reply = replies[r % len(replies)] if repeated else replies.pop(r % len(replies))
        self.world.server.take(reply, overflows=overflows)

    @precondition(lambda self: self.world.replies)
    @rule(r=which, kept=st.permutations(range(8)), lost=st.integers(0, 3))
    def arrives_in_part_and_in_another_order(self, r: int, kept: list[int], lost: int) -> None:
        node, contributions = self.world.replies[r % len(self.world.replies)]
        order = [n for n in kept if n < len(contributions)][lost:]
        self.world.server.take(Reply(node, [contributions[n] for n in order]))

    @precondition(lambda self: self.world.replies)
    @rule(r=which)
    def is_lost(self, r: int) -> None:
        self.world.replies.pop(r % len(self.world.replies))

    # -- what happens to clients ------------------------------------------------------------

    @rule(p=which, moves=st.booleans())
    def restarts(self, p: int, moves: bool) -> None:
        process = self.process(p)
        process.known = None
        if moves:
            process.node = self.world.new_node()

    @rule(p=which)
    def snapshot(self, p: int) -> None:
        process = self.process(p)
        if process.state.samples:  # what is empty has nothing to take another's place with
            self.world.snapshots.append((process.group, copy.deepcopy(process.state)))

    @rule(p=which, s=which, how=st.sampled_from(["runs on", "restarts", "moves"]))
    def is_restored(self, p: int, s: int, how: str) -> None:
        process = self.process(p)
        found = [state for group, state in self.world.snapshots if group == process.group]
        if found:
            process.state = copy.deepcopy(found[s % len(found)])
            if how != "runs on":
                self.restarts(p, how == "moves")

    @rule(p=which)
    def is_copied(self, p: int) -> None:
        process = self.process(p)
        if not process.state.samples:
            return  # what is empty has nothing to take another's place with
        twin = Process(process.group, self.world.new_node(), copy.deepcopy(process.state))
        self.world.processes.append(twin)

    @rule(p=which)
    def copy_stops(self, p: int) -> None:
        process = self.process(p)
        if len(self.world.group(process.group)) > 1:
            self.world.processes.remove(process)

    # -- what a thief does ------------------------------------------------------------------

    @rule(p=which, full=st.booleans(), claims=st.sampled_from(["epoch", "replaces"]))
    def is_impersonated(self, p: int, full: bool, claims: str) -> None:
        """Another node has learnt which life a client lives, and its numbers, not its secret."""
        life, thief = self.process(p).state.life, self.world.new_node()
        lives = (life.epoch, life.replaces) if claims == "epoch" else ("own", (life.epoch,))
        if self.world.server.known.settled_of(self.process(p).node).epoch != life.epoch:
            return  # the server has never heard of it, or not of this life
        kind = "full" if full else "delta"
        for seq in (1, life.seq, life.seq + 1):
            for secret in ("", "guessed"):
                sent = Sent(lives[0], seq, kind, lives[1], (life.seq,), (-1,), secret)  # type: ignore[arg-type]
                self.world.server.take(Reply(thief, [sent]))
                assert self.world.server.judged[-1].reason == "owner"

    # -- what happens to the server ---------------------------------------------------------

    @rule()
    def backup(self) -> None:
        self.world.backups.append(self.world.server.backup())

    @rule()
    def server_restarts(self) -> None:
        self.world.restore(self.world.server.backup())

    @rule(b=which)
    def server_is_restored(self, b: int) -> None:
        self.world.restore(self.world.backups[b % len(self.world.backups)])

    @rule(p=which)
    def forget(self, p: int) -> None:
        self.world.forget(self.process(p).group)

    # -- what holds at all times ------------------------------------------------------------

    @invariant()
    def nothing_counts_twice(self) -> None:
        assert all(times == 1 for times in self.world.counted().values())


def check_quiescence(world: World) -> None:
    for _ in range(PATIENCE + 6):
        world.round()
    merges, counted = world.server.merges, world.counted()
    check_what_counts(world)
    for _ in range(PATIENCE + 2):
        world.round()
    assert (world.server.merges, world.counted()) == (merges, counted), "copies take turns"


def check_what_counts(world: World) -> None:
    counted, expected = set(world.counted()), set()
    for number in {p.group for p in world.processes} - world.forgotten:
        covered = [set(p.state.samples) for p in world.group(number)]
        own = counted & set().union(*covered)
        assert own in covered, f"client {number}: {own} of {covered}"
        expected |= own
    assert counted == expected, "something forgotten or lost is counted"


def run(number: int, sequences: int) -> None:
    run_state_machine_as_test(
        seed(number)(Federation),
        settings=settings(
            max_examples=sequences, stateful_step_count=60, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


def test_any_sequence():
    run(20261, 200)


@pytest.mark.slow
def test_any_of_many_sequences():
    run(20262, 10_000)


# -- single stories -----------------------------------------------------------------------------


def test_the_later_copy_claims_the_life_and_the_other_is_refused_while_that_one_answers():
    world = World(1)
    first = world.processes[0]
    world.learn(first)
    world.round()
    later = Process(0, world.new_node(), copy.deepcopy(first.state))
    world.processes.append(later)
    world.learn(first)
    world.learn(later)
    for _ in range(6):
        world.round()
    assert set(world.counted()) == {0, 2}
    assert "another copy" in world.server.judged[-2].text
    assert world.server.known.terms_for(first.node)["refused"] == "claimed"
    world.processes.remove(later)
    for _ in range(PATIENCE + 1):
        world.round()
    assert set(world.counted()) == {0, 1}


def test_copies_that_learn_equally_much_are_told_apart():
    """Both make number 2, with other samples and as many."""
    world = World(1)
    first = world.processes[0]
    world.learn(first)
    world.round()
    later = Process(0, world.new_node(), copy.deepcopy(first.state))
    world.learn(first)
    world.round()
    world.processes = [later]
    world.learn(later)
    for _ in range(2):
        world.round()
    assert set(world.counted()) == {0, 2}


def test_a_restart_costs_no_full_state():
    world = World(1)
    process = world.processes[0]
    for _ in range(4):
        world.learn(process)
        process.known = None
        world.round()
    assert [verdict.outcome for verdict in world.server.judged] == ["merge"] * 4
    assert world.server.kinds == ["full", "delta", "delta", "delta"]


def test_what_was_forgotten_stays_forgotten_in_a_server_that_never_heard_of_it():
    world = World(2)
    for process in world.processes:
        world.learn(process)
    world.round()
    world.forget(0)
    world.restore(world.backups[0])
    world.processes[0].state = State()  # known by its node alone
    world.processes[0].known = None
    world.learn(world.processes[0])
    for _ in range(3):
        world.round()
    assert set(world.counted()) == {1}


def test_what_is_known_of_clients_is_read_from_earlier_versions_or_refused():
    world = World(1)
    world.learn(world.processes[0])
    world.round()
    state = world.server.known.state()
    later = ("_answered", "_locks", "left", "_moves")
    earlier = {name: value for name, value in state.items() if name not in later}
    known = KnownClients()
    known.restore(earlier)
    assert known.settled_of("n0") == world.server.known.settled_of("n0")
    for broken in ({}, {"_settled": {}}, state | {"more": 1}):
        with pytest.raises(ValueError, match="not of this version; begin the federation anew"):
            known.restore(broken)


ROOM = ["client", "server", "release", "departures", "edge"]


@pytest.mark.parametrize("side", ROOM)
def test_it_knows_neither_flower_nor_tensors(side):
    source = Path(client_side.__file__).with_name(f"{side}.py").read_text()
    names = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    ours = {name for name in names if name.startswith("protocl")}
    assert ours <= {f"protocl.federation.exactly_once.{name}" for name in ROOM}
    assert names - ours <= sys.stdlib_module_names | {"__future__"}
