"""Secure sums over many rounds: no sum and no difference of two sums tells of a few clients."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from protocl import PrototypeMemory
from protocl.errors import AllFailedError
from protocl.federation.client.client import ClientData
from protocl.federation.privacy.vector import StatisticsLayout
from protocl.federation.runner.simulation import simulate
from protocl.federation.secure.channel import FlowerChannel
from protocl.federation.secure.client import STEPS, ProtectedClient
from protocl.federation.secure.identities import SimulatedIdentities
from protocl.federation.secure.protocol.aggregator import Aggregator
from protocl.federation.secure.strategy import ProtectedPrototypes
from protocl.federation.wire.grid import InProcessGrid
from protocl.io import atomic
from protocl.io.checkpoint import CheckpointFolder

CLIENTS, MOST_PARTS = 5, 24
IDENTITIES = SimulatedIdentities(CLIENTS)
Parts = frozenset[tuple[int, int]]


class KilledError(BaseException):
    """The server dies here."""


def layout() -> StatisticsLayout:
    """A class for each part of each client, so that a sum says what is in it."""
    return StatisticsLayout(PrototypeMemory(1, exact=True), range(CLIENTS * MOST_PARTS))


@dataclass
class Round:
    """What happens in one round; nodes are those of the clients, from 0 on."""

    new: frozenset[int] = frozenset(range(CLIENTS))
    away: frozenset[int] = frozenset()
    restarted: frozenset[int] = frozenset()
    fails: frozenset[tuple[str, int]] = frozenset()
    reply_lost: frozenset[tuple[str, int]] = frozenset()
    killed_at: int | None = None
    new_run: bool = False
    restored: bool = False


@dataclass
class World:
    """A server and clients that may die at any moment; what is on disk outlives them.

    Attributes:
        asked: session -> what was in the sum whose shares were asked for.
        least: session -> how many contributors it must have at least.
    """

    folder: Path
    colluders: int = 0
    pinned: bool = False
    have: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(CLIENTS), 0))
    asked: dict[bytes, Parts] = field(default_factory=dict)
    least: dict[bytes, int] = field(default_factory=dict)
    now: Round = field(default_factory=Round)
    events: int = 0

    def __post_init__(self) -> None:
        self.client = ProtectedClient(
            self.load,
            layout(),
            colluders=self.colluders,
            signer_of=IDENTITIES if self.pinned else None,
            keep=self.folder / "clients",
        )
        self.begin_run()
        self.begin_server()

    def begin_run(self) -> None:
        """Flower keeps nothing of its clients between two runs."""
        self.grid = InProcessGrid(self, CLIENTS, isolate=True)  # type: ignore[arg-type]
        self.grid.send_and_receive = self.counted(self.grid.send_and_receive)  # type: ignore[method-assign]

    def begin_server(self) -> None:
        checkpoints = self.folder / "server"
        self.strategy = ProtectedPrototypes(
            layout(),
            colluders=self.colluders,
            roster=IDENTITIES.roster if self.pinned else None,
            checkpoints=checkpoints,
            wait=0.0,
        )
        kept = self.strategy._checkpoints
        assert isinstance(kept, CheckpointFolder)
        kept.save = self.counted(kept.save)  # type: ignore[method-assign]
        self.strategy.resume()

    def load(self, context: Context) -> ClientData:
        client = int(context.node_config["partition-id"])
        chunks = [
            (torch.ones(1, 1), torch.tensor([client * MOST_PARTS + part]))
            for part in range(self.have[client])
        ]
        return ClientData(chunks)

    def __call__(self, message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        here = (message.metadata.message_type.removeprefix("train."), client)
        if here in self.now.fails:
            raise ConnectionError("did not arrive")
        reply = self.client.app()(message, context)
        if here in self.now.reply_lost:
            raise ConnectionError("the answer did not arrive")
        return reply

    def counted(self, function: Any) -> Any:
        """Before and after ``function`` the server may die."""

        def call(*arguments: Any, **options: Any) -> Any:
            self.die_perhaps()
            result = function(*arguments, **options)
            result = result if result is None else list(result)
            self.die_perhaps()
            return result

        return call

    def die_perhaps(self) -> None:
        self.events += 1
        if self.events == self.now.killed_at:
            raise KilledError

    def run(self, now: Round) -> None:
        self.now, self.events = now, 0
        for client in now.new:
            self.have[client] = min(self.have[client] + 1, MOST_PARTS, self.strategy.round + 1)
        nodes = sorted(self.grid._contexts)
        self.grid.online = {node for i, node in enumerate(nodes) if i not in now.away}
        for client in now.restarted:
            self.grid._contexts[nodes[client]].state = RecordDict()
        try:
            with self.recording(), suppress(AllFailedError):
                simulate(
                    self.strategy, self.client.app(), clients=CLIENTS, rounds=1, grid=self.grid
                )
        except KilledError:
            self.begin_server()
        if now.restored:
            for newest in CheckpointFolder(self.folder / "server").files()[:1]:
                newest.unlink()
            self.begin_server()
        if now.new_run:
            self.begin_run()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note what is in every sum whose shares are asked for."""
        original = FlowerChannel.unmask

        def unmask(channel: FlowerChannel, aggregator: Aggregator) -> Any:
            unfinished, terms = self.strategy.unfinished, aggregator.agreement
            assert unfinished is not None
            clients = {node: i for i, node in enumerate(sorted(self.grid._contexts))}
            parts = frozenset(
                (clients[node], part)
                for node, (start, end) in unfinished.spans.items()
                for part in range(start, end)
            )
            assert self.asked.setdefault(terms.session, parts) == parts
            self.least[terms.session] = terms.colluding(len(aggregator.roster)) + 2
            return original(channel, aggregator)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FlowerChannel, "unmask", unmask)
            yield

    def summed(self) -> Parts:
        """What the memory holds; every part once."""
        memory = self.strategy.memory
        assert memory.counts.tolist() == [1] * len(memory)
        return frozenset(divmod(int(c), MOST_PARTS) for c in memory.classes)

    def check(self) -> None:
        few = min(self.least.values(), default=0)
        for parts in self.asked.values():
            assert len(contributors(parts)) >= few
        for one, other in combinations(self.asked.values(), 2):
            assert len(contributors(one ^ other)) >= few
            assert not one & other, "spent vectors are in no other sum"
        summed = self.summed()
        assert all(parts <= summed or not parts & summed for parts in self.asked.values())
        assert summed <= frozenset().union(*self.asked.values())


def contributors(parts: Iterable[tuple[int, int]]) -> set[int]:
    return {client for client, _ in parts}


CLIENT_SETS = st.frozensets(st.integers(0, CLIENTS - 1))
FAULTS = st.frozensets(st.tuples(st.sampled_from(STEPS), st.integers(0, CLIENTS - 1)), max_size=3)
ROUNDS = st.lists(
    st.builds(
        Round,
        new=st.one_of(st.just(frozenset(range(CLIENTS))), CLIENT_SETS),
        away=st.frozensets(st.integers(0, CLIENTS - 1), max_size=2),
        restarted=st.frozensets(st.integers(0, CLIENTS - 1), max_size=2),
        fails=FAULTS,
        reply_lost=FAULTS,
        killed_at=st.none() | st.integers(1, 16),
        new_run=st.booleans(),
        restored=st.sampled_from([False, False, False, True]),
    ),
    min_size=2,
    max_size=4,
)


def play(rounds: list[Round], colluders: int, pinned: bool) -> World:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        # Processes die here, not machines: what was written is there, whether flushed or not.
        patch.setattr(atomic, "flush", lambda path: None)
        world = World(Path(folder), colluders, pinned)
        for now in rounds:
            world.run(now)
            world.check()
        # Quiet ones, until all have had something new twice: what is there goes by the number of
        # the round, and a server that was set back counts some of them again. One that was set back
        # into a sum whose parties have gone on asks for its shares in vain before it begins others.
        news = 0
        while news < 2:
            before, idle = dict(world.have), world.strategy.unfinished is None
            world.run(Round())
            world.check()
            news += idle and all(world.have[client] > before[client] for client in before)
        return world


def check_nothing_is_lost(world: World, rounds: list[Round]) -> None:
    """In the end all that was given is in the memory, unless the server forgot a sum."""
    if not any(now.restored for now in rounds):
        assert not world.strategy.summed.lost
        assert world.summed() == frozenset().union(*world.asked.values())
    assert world.summed(), "a restored server goes on with what is new"


COLLUDERS = st.sampled_from([0, 0, 2])
SET_BACK_INTO_A_SUM = [
    Round(killed_at=10), Round(away=frozenset({0, 1})), Round(), Round(killed_at=2, restored=True),
]  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@example(SET_BACK_INTO_A_SUM, 0, False)
@given(ROUNDS, COLLUDERS, st.booleans())
def test_no_few_clients_can_be_told_apart(
    rounds: list[Round], colluders: int, pinned: bool
) -> None:
    check_nothing_is_lost(play(rounds, colluders, pinned), rounds)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(ROUNDS, COLLUDERS, st.booleans())
def test_no_few_clients_can_be_told_apart_in_many_sequences(
    rounds: list[Round], colluders: int, pinned: bool
) -> None:
    check_nothing_is_lost(play(rounds, colluders, pinned), rounds)
