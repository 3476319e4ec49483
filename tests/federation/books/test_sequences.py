"""Any sequence of rounds, losses, restores, requests to forget and withdrawals, on real books.

At quiescence the merged memory is, bit for bit, the sum of what the clients have now, the audit
finds nothing, and nothing that was forgotten is in a file. Hypothesis seeds 20263 (6 sequences)
and 20264 (400, slow), 14 steps each at most.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from protocl import PrototypeMemory
from protocl.federation.books.audit import audit
from protocl.federation.books.backup import back_up, restore
from protocl.federation.client.state import ClientState
from protocl.federation.exactly_once.client import Settled
from protocl.federation.server.state import same_statistics
from protocl.federation.server.strategy import FederatedPrototypes
from protocl.federation.wire.messages import RejectedError
from tests.federation.books.test_forgetting import empty, found_in, memory_of, sums_of

CLIENTS = 3
which = st.integers(0, CLIENTS - 1)


class Sequences(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.like = empty()
        self.strategy = self.opened()
        self.clients = [ClientState(self.like.empty_like()) for _ in range(CLIENTS)]
        self.chunks: list[list[int]] = [[] for _ in range(CLIENTS)]
        self.forgotten: set[int] = set()
        self.classes: set[int] = set()
        self.gone: list[PrototypeMemory] = []
        self.number = self.made = 0

    def opened(self) -> FederatedPrototypes:
        strategy = FederatedPrototypes(self.like, checkpoints=self.folder / "s")
        strategy.resume()
        return strategy

    def exchange(self, client: int) -> None:
        state, node = self.clients[client], str(client)
        merged = self.strategy.merged
        terms = merged.known.terms_for(node)
        heard = Settled(terms["epoch"], terms["settled"], terms["samples"])  # type: ignore[arg-type]
        state.hear(str(terms["server"]), heard, bool(terms["prove"]))
        if terms["full"]:
            state.send_everything()
        for contribution in [] if terms["forgotten"] else state.pending:
            try:
                merged.accept(contribution, client=node, round_number=self.number)
            except RejectedError as error:
                merged.refuse(error, client=node, round_number=self.number)

    @rule(client=which)
    def learns(self, client: int) -> None:
        self.chunks[client].append(self.made)
        self.clients[client].contribute(memory_of(self.like, (client, self.made)), self.made)
        self.made += 1

    @rule(clients=st.sets(which))
    def round(self, clients: set[int]) -> None:
        self.number += 1
        for client in sorted(clients):
            self.exchange(client)
        self.strategy._save(self.number)

    @rule()
    def dies(self) -> None:
        """What was not saved is lost, and said to nobody to be settled."""
        self.strategy = self.opened()

    @rule()
    def is_backed_up(self) -> None:
        (self.folder / "backup").unlink(missing_ok=True)
        if (self.folder / "s/books.sqlite").exists():
            back_up(self.folder / "s", self.folder / "backup")

    @rule()
    def is_restored(self) -> None:
        if (self.folder / "backup").exists():
            restore(self.folder / "s", self.folder / "backup")
            self.strategy = self.opened()

    @rule(client=which)
    def forgets_a_client(self, client: int) -> None:
        if str(client) in self.strategy.merged.clients:
            self.gone.append(self.strategy.merged.contribution_of(str(client)))
            self.strategy.forget_client(str(client))
            self.forgotten.add(client)

    @rule(class_id=st.integers(0, 4))
    def forgets_a_class(self, class_id: int) -> None:
        if class_id in self.strategy.memory:
            self.gone.append(self.strategy.memory.subset(class_id))
            self.strategy.forget_classes(class_id)
            self.classes.add(class_id)

    @rule(client=which)
    def withdraws(self, client: int) -> None:
        if self.chunks[client]:
            taken = self.chunks[client].pop()
            self.clients[client].withdraw(memory_of(self.like, (client, taken)))

    def teardown(self) -> None:
        self.strategy = self.opened()
        for _ in range(4):
            self.round(set(range(CLIENTS)))
        staying = set(range(CLIENTS)) - self.forgotten
        expected = memory_of(self.like, *((c, t) for c in staying for t in self.chunks[c]))
        if present := self.classes.intersection(expected.classes.tolist()):
            expected.forget(present)
        assert same_statistics(self.strategy.memory, expected)
        assert not self.number or not audit(self.folder / "s").faults
        here = {
            s for memory in (expected, *map(self.part, range(CLIENTS))) for s in sums_of(memory)
        }
        needles = [s for memory in self.gone for s in sums_of(memory) if s not in here]
        assert not needles or found_in(self.folder / "s", needles) == []
        again = self.opened()
        assert same_statistics(again.memory, expected)
        shutil.rmtree(self.folder)

    def part(self, client: int) -> PrototypeMemory:
        return memory_of(self.like, *((client, t) for t in self.chunks[client]))


def run(number: int, sequences: int) -> None:
    run_state_machine_as_test(
        seed(number)(Sequences),
        settings=settings(
            max_examples=sequences, stateful_step_count=14, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


def test_any_sequence():
    run(20263, 6)


@pytest.mark.slow
def test_any_of_many_sequences():
    run(20264, 400)
