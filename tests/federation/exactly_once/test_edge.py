"""Each sample once at the root of a tree, whatever happens to messages, clients and edges.

The hypothesis seeds are 20271 (50 sequences) and 20272 (5,000, slow), 50 steps each at most.
"""

from __future__ import annotations

import copy

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
from protocl.federation.exactly_once.server import PATIENCE
from tests.federation.exactly_once.tree import Edge, Traveller, Tree
from tests.federation.exactly_once.world import Request, State

which = st.integers(0, 1_000_000)


class Edges(RuleBasedStateMachine):
    """Any interleaving; at quiescence what each client's present state covers counts once."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = Tree(1, 0)

    @initialize(edges=st.integers(2, 3), clients=st.integers(1, 3), lives=st.sampled_from([3, 16]))
    def begin(self, edges: int, clients: int, lives: int) -> None:
        self.lives = pytest.MonkeyPatch()
        self.lives.setattr(client_side, "MAX_LIVES", lives)
        self.tree = Tree(edges, clients)
        self.snapshots: list[tuple[int, State]] = []

    def teardown(self) -> None:
        if self.tree.processes:
            check_quiescence(self.tree)
            self.lives.undo()

    def process(self, number: int) -> Traveller:
        return self.tree.processes[number % len(self.tree.processes)]

    def edge(self, number: int) -> Edge:
        names = sorted(self.tree.edges)
        return self.tree.edges[names[number % len(names)]]

    # -- clients ----------------------------------------------------------------------------

    @rule(p=which)
    def learns(self, p: int) -> None:
        self.tree.learn(self.process(p))

    @rule(p=which)
    def client_exchanges(self, p: int) -> None:
        self.tree.exchange(self.process(p).place, self.process(p))

    @rule(e=which)
    def edge_exchanges(self, e: int) -> None:
        self.tree.exchange("", self.edge(e))

    @rule()
    def round(self) -> None:
        self.tree.round()

    # -- messages ---------------------------------------------------------------------------

    @rule(s=which, a=which)
    def is_asked(self, s: int, a: int) -> None:
        name = self.tree.servers()[s % len(self.tree.servers())]
        if askers := self.tree.askers(name):
            one = askers[a % len(askers)]
            node = one.name if isinstance(one, Edge) else one.node
            terms = self.tree.server(name).known.terms_for(node)
            self.tree.requests.append((name, Request(node, terms)))

    @precondition(lambda self: self.tree.requests)
    @rule(r=which, repeated=st.booleans())
    def answers(self, r: int, repeated: bool) -> None:
        requests = self.tree.requests
        name, request = requests[r % len(requests)] if repeated else requests.pop(r % len(requests))
        reply = self.tree.answer(name, request)
        if reply is not None:
            self.tree.replies.append((name, reply))

    @precondition(lambda self: self.tree.replies)
    @rule(r=which, repeated=st.booleans(), lost=st.booleans())
    def arrives(self, r: int, repeated: bool, lost: bool) -> None:
        replies = self.tree.replies
        name, reply = replies[r % len(replies)] if repeated else replies.pop(r % len(replies))
        if not lost:
            self.tree.take(name, reply)

    # -- what happens to clients ------------------------------------------------------------

    @rule(p=which, new_node=st.booleans())
    def restarts(self, p: int, new_node: bool) -> None:
        process = self.process(p)
        process.known = None
        if new_node:
            process.node = self.tree.new_node()

    @rule(p=which)
    def snapshot(self, p: int) -> None:
        process = self.process(p)
        if process.state.samples:
            self.snapshots.append((process.group, copy.deepcopy(process.state)))

    @rule(p=which, s=which)
    def is_restored(self, p: int, s: int) -> None:
        process = self.process(p)
        found = [state for group, state in self.snapshots if group == process.group]
        if found:
            process.state, process.known = copy.deepcopy(found[s % len(found)]), None

    @rule(p=which, e=which)
    def asks_for_its_release(self, p: int, e: int) -> None:
        self.tree.ask_release(self.process(p), self.edge(e).name)

    @rule(p=which, keep_node=st.booleans())
    def moves(self, p: int, keep_node: bool) -> None:
        self.tree.collect_releases()
        self.tree.move(self.process(p), keep_node)

    @rule(p=which, e=which)
    def strays(self, p: int, e: int) -> None:
        """To an edge that it has no release for."""
        process = self.process(p)
        process.place, process.known = self.edge(e).name, None

    @rule(p=which)
    def forget(self, p: int) -> None:
        self.tree.forget(self.process(p).group)

    # -- what happens to servers ------------------------------------------------------------

    @rule(e=which)
    def backup(self, e: int) -> None:
        edge = self.edge(e)
        self.tree.backups[edge.name].append(edge.backup())
        self.tree.root_backups.append(self.tree.root.backup())

    @rule(e=which)
    def edge_is_killed(self, e: int) -> None:
        edge = self.edge(e)
        self.tree.edges[edge.name] = edge.restored(edge.backup())

    @rule(e=which, b=which)
    def edge_is_restored(self, e: int, b: int) -> None:
        edge = self.edge(e)
        backups = self.tree.backups[edge.name]
        self.tree.edges[edge.name] = edge.restored(backups[b % len(backups)])

    @rule(b=which)
    def root_is_restored(self, b: int) -> None:
        backups = self.tree.root_backups
        self.tree.root = self.tree.root.restored(backups[b % len(backups)])
        self.tree.set_back = True  # for rows are of different times until edges answer

    # -- what holds at all times ------------------------------------------------------------

    @invariant()
    def nothing_counts_twice(self) -> None:
        for name in self.tree.servers():
            if name or not self.tree.set_back:
                assert all(times == 1 for times in self.tree.counted(name).values())


def check_quiescence(tree: Tree) -> None:
    for _ in range(3):
        tree.round()
    tree.collect_releases()
    assert not tree.asked, "a release is not given out"
    for process in tree.processes:
        tree.move(process, keep_node=False)
        if process.group not in tree.releases:  # one that strayed
            process.place = process.state.life.edge or process.place
    for _ in range(PATIENCE + 6):
        tree.round()
    counted = tree.counted()
    assert all(times == 1 for times in counted.values())
    assert counted == sum((tree.counted(name) for name in tree.edges), start=type(counted)())
    expected: set[int] = set()
    for process in tree.processes:
        if process.group not in tree.forgotten:
            expected |= set(process.state.samples)
    assert set(counted) == expected
    merges = tree.root.merges
    tree.round()
    assert tree.root.merges == merges, "edges that have nothing new send something"


def run(number: int, sequences: int) -> None:
    run_state_machine_as_test(
        seed(number)(Edges),
        settings=settings(
            max_examples=sequences, stateful_step_count=50, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


def test_any_sequence():
    run(20271, 50)


@pytest.mark.slow
def test_any_of_many_sequences():
    run(20272, 5_000)


# -- single stories -----------------------------------------------------------------------------


def test_who_left_comes_back_to_an_edge_that_lost_all_memory_of_it():
    """It is known by the tombstone alone, and by its secret."""
    tree = Tree(2, 1)
    process = tree.processes[0]
    tree.learn(process)
    for target in ("e1", "e0"):
        for _ in range(2):
            tree.round()
        tree.ask_release(process, target)
        if target == "e0":
            tree.edges["e0"] = tree.edges["e0"].restored(tree.backups["e0"][0])
        for _ in range(2):
            tree.round()
        tree.collect_releases()
        tree.move(process, keep_node=True)
    check_quiescence(tree)
    assert tree.counted("e0") == {0: 1}


def test_a_release_is_given_out_once_the_root_is_without_the_client():
    tree = Tree(2, 2)
    for process in tree.processes:
        tree.learn(process)
    tree.round()
    tree.ask_release(tree.processes[0], "e1")
    for withdrawn in range(2):
        tree.collect_releases()
        assert not tree.releases
        assert len(tree.counted()) == 2 - withdrawn
        tree.exchange("", tree.edges["e0"])
    tree.exchange("", tree.edges["e0"])
    tree.collect_releases()
    assert [release.target for release in tree.releases[0]] == ["e1"]
