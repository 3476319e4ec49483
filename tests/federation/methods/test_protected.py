"""Protected federations from end to end: Flower messages between a server and its clients."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from protocl import PrototypeMemory
from protocl.checks import assert_same, sample_batch
from protocl.errors import AllFailedError
from protocl.federation.client.client import ClientData
from protocl.federation.privacy.mechanism import GaussianMechanism, PrivacyError
from protocl.federation.privacy.release import PrivateRelease
from protocl.federation.privacy.vector import StatisticsLayout
from protocl.federation.runner.simulation import simulate
from protocl.federation.secure.client import ProtectedClient
from protocl.federation.secure.protocol.agreement import SecureAggregationError
from protocl.federation.secure.strategy import ProtectedPrototypes
from protocl.federation.wire.grid import InProcessGrid

CLASSES = [0, 3, 7, 41, 1000]
CLIENTS, ROUNDS = 7, 3


def load(context: Context) -> ClientData:
    """A part of a client's data arrives in each round."""
    seed = int(context.node_config["partition-id"])
    features, labels = sample_batch(4, samples=45, seed=seed)
    return ClientData([(features[i::ROUNDS], labels[i::ROUNDS]) for i in range(ROUNDS)])


def layout(level: str = "shared", step: float = 2.0**-16) -> StatisticsLayout:
    return StatisticsLayout(PrototypeMemory(4, level, exact=True, step=step), CLASSES)  # type: ignore[arg-type]


def plain(
    clients: Iterable[int], rounds: int = ROUNDS, level: str = "shared", step: float = 2.0**-16
) -> PrototypeMemory:
    """What all samples in one place give."""
    memory = layout(level, step).empty_memory()
    for client in clients:
        features, labels = sample_batch(4, samples=45, seed=client)
        for i in range(rounds):
            memory.update(features[i::ROUNDS], labels[i::ROUNDS])
    return memory


class Unreliable:
    """A ClientApp whose nodes vanish: ``gone`` gives nodes by step and round."""

    def __init__(self, app: ClientApp, gone: dict[tuple[str, int], set[int]]) -> None:
        self.app = app
        self.gone = gone

    def __call__(self, message: Message, context: Context) -> Message:
        step = (message.metadata.message_type, int(message.metadata.group_id))
        if int(context.node_config["partition-id"]) in self.gone.get(step, ()):
            raise ConnectionError("vanished")
        return self.app(message, context)


def run(
    strategy: ProtectedPrototypes,
    client: ProtectedClient,
    gone: dict[tuple[str, int], set[int]] | None = None,
    rounds: int = ROUNDS,
) -> ProtectedPrototypes:
    grid = InProcessGrid(Unreliable(client.app(), gone or {}), CLIENTS, isolate=True)  # type: ignore[arg-type]
    simulate(strategy, client.app(), clients=CLIENTS, rounds=rounds, grid=grid)
    return strategy


@pytest.mark.parametrize("level", ["mean", "full"])
def test_secure_federation_equals_the_plain_merge(level: str) -> None:
    done = run(ProtectedPrototypes(layout(level)), ProtectedClient(load, layout(level)))
    assert not done.failures
    assert_same(done.memory, plain(range(CLIENTS), level=level), "secure federation")


def test_clients_that_leave_are_summed_later() -> None:
    """A third vanishes at every step of the second round; the third round makes up for it."""
    gone = {("train.share", 2): {0}, ("train.mask", 2): {4}}
    strategy = ProtectedPrototypes(layout())
    run(strategy, ProtectedClient(load, layout()), gone, rounds=2)
    assert sorted(strategy.summed.parts.values()) == [1, 1, 2, 2, 2, 2, 2]
    expected = plain([1, 2, 3, 5, 6], rounds=2) + plain([0, 4], rounds=1)
    assert_same(strategy.memory, expected, "after round 2")

    strategy = ProtectedPrototypes(layout())
    run(strategy, ProtectedClient(load, layout()), gone | {("train.unmask", 2): {6}}, rounds=2)
    assert "4 of 7 parties gave their shares: 5 are needed" in strategy.failures[2]
    assert_same(strategy.memory, plain(range(CLIENTS), rounds=1), "a failed round adds nothing")

    strategy = ProtectedPrototypes(layout())
    run(strategy, ProtectedClient(load, layout()), gone | {("train.unmask", 2): {6}}, rounds=3)
    assert_same(strategy.memory, expected, "the next round asks for the same shares again")

    strategy = ProtectedPrototypes(layout())
    run(strategy, ProtectedClient(load, layout()), gone, rounds=ROUNDS + 1)
    assert sorted(strategy.summed.parts.values()) == [2, 2, 3, 3, 3, 3, 3]
    assert "waiting: 2 of those who enrolled have something new, 4 are" in strategy.failures[4]
    expected = plain([1, 2, 3, 5, 6]) + plain([0, 4], rounds=2)
    assert_same(strategy.memory, expected, "two alone would be told apart")


def test_nobody_has_anything_new() -> None:
    strategy = ProtectedPrototypes(layout())
    run(strategy, ProtectedClient(load, layout()), rounds=ROUNDS + 1)
    assert_same(strategy.memory, plain(range(CLIENTS)), "nothing added")
    assert not strategy.failures


def test_server_receives_nothing_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """No array that a node sends is a client's vector, or holds one of its entries in place."""
    received = []
    original = InProcessGrid.send_and_receive

    def record(self: InProcessGrid, messages: Iterable[Message], **options: float) -> list[Message]:
        replies = list(original(self, messages, **options))  # type: ignore[arg-type]
        received.extend(replies)
        return replies

    monkeypatch.setattr(InProcessGrid, "send_and_receive", record)
    run(ProtectedPrototypes(layout("mean")), ProtectedClient(load, layout("mean")), rounds=1)
    vectors = [layout("mean").pack(plain([c], rounds=1, level="mean")) for c in range(CLIENTS)]
    masked = [
        array.numpy()
        for reply in received
        for record in reply.content.array_records.values()
        for array in record.values()
    ]
    assert len(masked) == CLIENTS
    for sent in masked:
        assert all(not (sent == vector).any() for vector in vectors)
    total = np.sum(masked, axis=0)
    assert not (total == np.sum(vectors, axis=0)).any()


def test_server_never_holds_the_statistics_of_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing the server refers to after a step has an entry of a client's vector in it.

    A third of the clients vanish on the way; what is summed of the others is exact. The step is so
    fine that an entry has six bytes that are not zero: of three, with the zeros behind them, one
    run in some thousands finds an entry by chance where encrypted bytes end.
    """
    step = 2.0**-40
    form = layout("mean", step)
    strategy = ProtectedPrototypes(form)
    held: list[bytes] = []
    original = InProcessGrid.send_and_receive

    def record(self: InProcessGrid, messages: Iterable[Message], **options: float) -> list[Message]:
        replies = list(original(self, messages, **options))  # type: ignore[arg-type]
        contents = [reply.content for reply in replies if reply.has_content()]
        held.append(pickle.dumps((vars(strategy), contents)))
        return replies

    monkeypatch.setattr(InProcessGrid, "send_and_receive", record)
    gone = {("train.share", 1): {0}, ("train.mask", 1): {4}}
    run(strategy, ProtectedClient(load, form), gone, rounds=1)
    stayed = [1, 2, 3, 5, 6]
    assert_same(strategy.memory, plain(stayed, 1, "mean", step), "the sum of who stayed")
    assert len(held) >= 4  # advertise, share, mask, unmask
    part = form.parts["sum"]
    for client in range(CLIENTS):
        vector = form.pack(plain([client], 1, "mean", step))[part]
        large = [entry.tobytes() for entry in vector if abs(entry) >= 2**40]
        assert len(large) > 8
        for state in held:
            assert not any(entry in state for entry in large)
    # The control: the same look does find the sum that the server is meant to learn.
    total = strategy._sum.total[part]
    assert any(entry.tobytes() in pickle.dumps(vars(strategy)) for entry in total if entry)


@pytest.mark.parametrize(
    ("noise", "secure"),
    [("central", True), ("central", False), ("local", False), ("distributed", True)],
)
def test_private_federation(noise: str, secure: bool) -> None:
    """Noise of the stated size around the statistics of clipped samples."""
    mechanism = GaussianMechanism(clip=20.0, noise_multiplier=0.5)
    agreed = PrivateRelease(mechanism, layout("mean"), noise, contributors=5)  # type: ignore[arg-type]
    strategy = ProtectedPrototypes(layout("mean"), agreed, secure=secure)
    run(strategy, ProtectedClient(load, layout("mean"), agreed, secure=secure))
    assert not strategy.failures
    clean = plain(range(CLIENTS), level="mean")
    part = layout("mean").parts["sum"]
    moved = (strategy._sum.total - layout("mean").pack(clean))[part] * 2.0**-16
    releases = {"central": 3, "local": 21, "distributed": 21 / 5}[noise]
    stated = 20.0 * 0.5 * (2 * releases) ** 0.5
    assert strategy._sum.noise == pytest.approx(releases)
    assert 0.4 * stated < moved.std() < 1.8 * stated


def test_unsummed_vector_is_sent_again_with_the_same_noise() -> None:
    """Fresh noise on the same samples would be a second release."""
    agreed = PrivateRelease(GaussianMechanism(20.0, 0.5), layout("mean"), "local")
    client = ProtectedClient(load, layout("mean"), agreed, secure=False)
    context = Context(1, 1, {"partition-id": 0}, RecordDict(), {})
    InProcessGrid(client.app(), 1)  # lets messages be made here

    def vector(round_number: int, summed: int) -> np.ndarray:
        config = ConfigRecord(
            {"round": round_number, "summed": summed, "layout-digest": layout("mean").digest}
        )
        message = Message(RecordDict({"config": config}), dst_node_id=1, message_type="train")
        answer = client.send(message, context).content
        assert answer.config_records["answer"]["end"] == summed + 1
        return answer.array_records["arrays"]["vector"].numpy()

    first = vector(1, 0)
    np.testing.assert_array_equal(vector(2, 0), first)
    assert (vector(2, 1) != first).all()


def test_too_few_for_the_noise_are_not_unmasked() -> None:
    """Four of seven are online, one of whom may collude: the others hold 3/5 of the noise."""
    agreed = PrivateRelease(GaussianMechanism(20.0, 0.5), layout(), "distributed", contributors=5)
    client = ProtectedClient(load, layout(), agreed)
    gone = {("train.advertise", 1): {0, 1, 2}}
    strategy = run(ProtectedPrototypes(layout(), agreed), client, gone, rounds=1)
    assert "the noise of 3 honest contributors: expected 5" in strategy.failures[1]
    assert len(strategy.memory) == 0


def test_settings_must_agree() -> None:
    strategy = ProtectedPrototypes(layout())
    with pytest.raises(AllFailedError, match="the server sums other classes or another kind"):
        run(strategy, ProtectedClient(load, layout(step=2.0**-12)), rounds=1)
    assert "0 parties enrolled" in strategy.failures[1]
    quiet = PrivateRelease(GaussianMechanism(20.0, 0.5), layout(), "central")
    loud = PrivateRelease(GaussianMechanism(20.0, 0.5), layout(), "local")
    strategy = ProtectedPrototypes(layout(), loud)
    run(strategy, ProtectedClient(load, layout(), quiet), rounds=1)
    assert "0 parties enrolled" in strategy.failures[1]
    shared = PrivateRelease(GaussianMechanism(20.0, 0.5), layout(), "distributed", contributors=3)
    for make in (
        lambda: ProtectedPrototypes(layout(), shared, secure=False),
        lambda: ProtectedClient(load, layout(), shared, secure=False),
    ):
        with pytest.raises(PrivacyError, match="without secure aggregation"):
            make()
    assert shared.client_share == Fraction(1, 3)


def test_answers_without_sense_are_left_out() -> None:
    class Liar:
        """Node 0 answers step by step with other records than asked for."""

        def __init__(self, app: ClientApp, step: str, answer: dict[str, object]) -> None:
            self.app, self.step, self.answer = app, step, answer

        def __call__(self, message: Message, context: Context) -> Message:
            reply = self.app(message, context)
            first = context.node_config["partition-id"] == 0
            if first and message.metadata.message_type == self.step:
                content = RecordDict({"answer": ConfigRecord(self.answer)})  # type: ignore[arg-type]
                return Message(content, reply_to=message)
            return reply

    offer = {"client": "me", "start": 0, "end": 1, "noise": [0, 1]}
    for step, answer in (
        ("train.advertise", {**offer, "keys": b"short"}),
        ("train.advertise", {**offer, "end": -1, "keys": bytes(96)}),
        ("train.advertise", {**offer, "start": 1, "keys": bytes(96)}),
        ("train.advertise", {**offer, "client": 5, "keys": bytes(96)}),
        ("train.advertise", {**offer, "noise": [0, 0], "keys": bytes(96)}),
        ("train.share", {"sealed": b"12"}),
        ("train.share", {"sealed": 3}),
        ("train.mask", {}),
        ("train.unmask", {"seeds": b"1", "keys": b""}),
    ):
        app = Liar(ProtectedClient(load, layout()).app(), step, answer)
        strategy = ProtectedPrototypes(layout())
        grid = InProcessGrid(app, CLIENTS, isolate=True)  # type: ignore[arg-type]
        simulate(strategy, app.app, clients=CLIENTS, rounds=1, grid=grid)
        assert not strategy.failures, step
        accepted = range(0 if step == "train.unmask" else 1, CLIENTS)
        assert_same(strategy.memory, plain(accepted, rounds=1), step)


def test_a_restarted_client_drops_out_of_the_sum() -> None:
    """A node that lost its state between two steps cannot go on, and says so."""
    client = ProtectedClient(load, layout())
    InProcessGrid(client.app(), 1)
    config = RecordDict({"config": ConfigRecord({"roster": b""})})
    message = Message(config, dst_node_id=1, message_type="train.share")
    with pytest.raises(SecureAggregationError, match="in no sum"):
        client.share(message, Context(1, 1, {"partition-id": 0}, RecordDict(), {}))
