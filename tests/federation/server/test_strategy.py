"""The strategy on a grid in this process: the merged memory is that of all samples in one place."""

from __future__ import annotations

import threading
import time
from collections import UserList

import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from protocl import PrototypeMemory
from protocl.errors import AllFailedError
from protocl.federation import (
    ClientData,
    FederatedPrototypes,
    InProcessGrid,
    Options,
    PrototypeClient,
    QuorumGrid,
    simulate,
)
from protocl.federation.books.backup import back_up, restore
from protocl.federation.client.state import StatesOnDisk
from protocl.federation.server.sampling import NotEnoughClientsError
from protocl.federation.server.state import same_statistics
from protocl.heads import LinearDiscriminant, Mahalanobis, NearestMean, Ridge

DIM, CLIENTS, ROUNDS = 6, 6, 4


def chunk(client: int, t: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of client ``client`` that arrive before round ``t + 1``; its classes grow."""
    generator = torch.Generator().manual_seed(100 * client + t + 10_000 * seed)
    labels = torch.randint(client, client + t + 2, (12,), generator=generator)
    features = torch.randn(12, DIM, generator=generator) + labels[:, None]
    return features, labels


def data_of(client: int) -> ClientData:
    return ClientData(
        [chunk(client, t) for t in range(ROUNDS)], test=chunk(client, ROUNDS - 1, seed=1)
    )


def load(context: Context) -> ClientData:
    return data_of(int(context.node_config["partition-id"]))


def empty(level="mean", exact=True) -> PrototypeMemory:
    return PrototypeMemory(DIM, level, exact=exact, fingerprint="b")


def centralised(like: PrototypeMemory, clients=range(CLIENTS), rounds=ROUNDS) -> PrototypeMemory:
    features, labels = zip(*(chunk(c, t) for c in clients for t in range(rounds)), strict=True)
    return like.empty_like().update(torch.cat(features), torch.cat(labels))


def federate(
    like=None, *, grid_options=None, rounds=ROUNDS, head=None, keep_contributions=True, **options
):
    like = like or empty()
    strategy = FederatedPrototypes(like, Options(**options), keep_contributions=keep_contributions)
    client = PrototypeClient(load, like, head=head)
    grid = InProcessGrid(client.app(), CLIENTS, **(grid_options or {}))
    result = simulate(strategy, client.app(), clients=CLIENTS, rounds=rounds, grid=grid)
    return strategy, result, grid


@pytest.mark.parametrize("level", ["mean", "diagonal", "shared", "full"])
def test_merged_equals_centralised_bit_for_bit_in_fixed_point(level):
    strategy, _, _ = federate(empty(level), grid_options={"isolate": True})
    assert same_statistics(strategy.memory, centralised(empty(level)))


@pytest.mark.parametrize("level", ["mean", "diagonal", "shared", "full"])
def test_merged_equals_centralised_in_floating_point(level):
    like = empty(level, exact=False)
    strategy, _, _ = federate(like)
    whole = centralised(like)
    assert torch.equal(strategy.memory.counts, whole.counts)
    torch.testing.assert_close(strategy.memory.sums, whole.sums, rtol=1e-12, atol=1e-12)
    if level != "mean":
        torch.testing.assert_close(
            strategy.memory.second_moment, whole.second_moment, rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize(
    "head",
    [NearestMean(), LinearDiscriminant(), Mahalanobis(tukey=None), Ridge(projection=20)],
    ids=lambda head: type(head).__name__,
)
def test_every_head_answers_as_if_all_data_were_in_one_place(head):
    like = head.new_memory(DIM, exact=True)
    strategy, result, _ = federate(like, head=head)
    assert same_statistics(strategy.memory, centralised(like))
    x, y = (
        torch.cat(parts)
        for parts in zip(*(chunk(c, ROUNDS - 1, seed=1) for c in range(CLIENTS)), strict=True)
    )
    right = int((head.fit(centralised(like)).predict(x) == y).sum())
    metrics = result.evaluate_metrics_clientapp[ROUNDS]
    assert metrics["accuracy"] == right / len(y)
    assert metrics["num-examples"] == len(y)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("keep", [True, False])
def test_lost_and_late_replies_change_nothing_once_all_were_heard(seed, keep):
    faults = {"lost": 0.3, "late": 0.3, "seed": seed}
    strategy, _, grid = federate(grid_options=faults, keep_contributions=keep)
    assert not same_statistics(strategy.memory, centralised(empty()))
    grid.lost = grid.late = 0.0
    strategy.start(grid, ArrayRecord(), num_rounds=1)
    assert same_statistics(strategy.memory, centralised(empty()))
    assert strategy.merged.ledger.outcomes()["rejected"] == 0


def test_partial_participation_asks_the_share_and_loses_nothing():
    strategy, _, grid = federate(participation=0.5, rounds=ROUNDS)
    per_round = dict.fromkeys(range(1, ROUNDS + 1), 0)
    for number, _, kind, way, _ in strategy.traffic:
        per_round[number] += kind == "train" and way == "down"
    assert set(per_round.values()) == {3}
    strategy.options.participation = 1.0
    strategy.start(grid, ArrayRecord(), num_rounds=1)
    assert same_statistics(strategy.memory, centralised(empty()))


def test_late_joiners_and_leavers():
    strategy = FederatedPrototypes(empty(), Options(evaluate=0.0))
    client = PrototypeClient(load, empty())
    grid = InProcessGrid(client.app(), CLIENTS)
    everybody = set(grid.online)
    first, last = min(everybody), max(everybody)
    grid.online = everybody - {last}

    def change(number, arrays):
        if number == 2:  # after round 2 the first node leaves for good and the last one joins
            grid.online = everybody - {first}

    simulate(strategy, client.app(), clients=CLIENTS, rounds=ROUNDS, grid=grid, after_round=change)
    stayed = centralised(empty(), range(1, CLIENTS))
    left = centralised(empty(), [0], rounds=2)
    assert same_statistics(strategy.memory, stayed + left)


def test_a_client_that_raises_is_counted_and_the_others_are_merged():
    def broken(context):
        if context.node_config["partition-id"] == 2:
            raise OSError("the disk is gone")
        return load(context)

    strategy = FederatedPrototypes(empty())
    client = PrototypeClient(broken, empty())
    simulate(strategy, client.app(), clients=CLIENTS, rounds=1)
    (failed,) = [entry for entry in strategy.merged.ledger if entry.outcome == "failed"]
    assert failed.client == "1002"
    assert "the disk is gone" in failed.reason
    others = [c for c in range(CLIENTS) if c != 2]
    assert same_statistics(strategy.memory, centralised(empty(), others, rounds=1))


def test_a_client_of_another_backbone_refuses_and_is_refused():
    other = PrototypeMemory(DIM, exact=True, fingerprint="other")
    client = PrototypeClient(load, other)
    strategy = FederatedPrototypes(empty())
    with pytest.raises(AllFailedError, match="all clients failed in all rounds; 1 times: Fingerpr"):
        simulate(strategy, client.app(), clients=1, rounds=1)
    (entry,) = strategy.merged.ledger
    assert "FingerprintError" in entry.reason
    assert len(strategy.memory) == 0


def test_a_client_with_other_settings_refuses():
    client = PrototypeClient(load, empty("shared"))
    strategy = FederatedPrototypes(empty())
    with pytest.raises(AllFailedError, match="level=mean, this client's has level=shared"):
        simulate(strategy, client.app(), clients=1, rounds=1)
    (entry,) = strategy.merged.ledger
    assert "level=mean" in entry.reason


def test_bad_messages_are_counted_with_reason_and_never_merged():
    def hostile(message: Message, context: Context) -> Message:
        reply = client.train(message, context)
        if context.node_config["partition-id"] == 1:
            reply.content["arrays-0"]["sum"] = Array(torch.full((2, 2), 7).numpy())
        if context.node_config["partition-id"] == 2:
            reply.content["header-0"]["epoch"] = 5
        if context.node_config["partition-id"] == 3:
            return Message(RecordDict({"noise": ArrayRecord()}), reply_to=message)
        return reply

    client = PrototypeClient(load, empty())
    strategy = FederatedPrototypes(empty(), Options(evaluate=0.0))
    simulate(strategy, hostile_app(client, hostile), clients=CLIENTS, rounds=1)
    assert strategy.merged.ledger.reasons() == {"shape": 1, "format": 1}
    good = centralised(empty(), [0, 4, 5], rounds=1)
    assert same_statistics(strategy.memory, good)


def hostile_app(client, train):
    app = ClientApp()
    app.train()(train)
    app.evaluate()(client.evaluate)
    return app


@pytest.mark.parametrize("chunks", [chunk(0, 0), [chunk(0, 0)[:1]], torch.ones(2, 2)])
def test_data_without_pairs_are_refused(chunks):
    with pytest.raises(TypeError, match=r"chunks\[0\] is no pair.*ClientData\(\[\("):
        ClientData(chunks)


def test_data_may_be_loaded_when_they_are_asked_for():
    class Loaded(UserList):
        def __getitem__(self, index):
            raise AssertionError("nobody has asked yet")

    assert len(ClientData(Loaded([chunk(0, 0)])).chunks) == 1


def test_no_clients_are_refused():
    app = PrototypeClient(load, empty()).app()
    with pytest.raises(ValueError, match="clients=0: expected at least 1"):
        simulate(FederatedPrototypes(empty()), app, clients=0, rounds=1)


def test_waits_for_enough_clients_then_gives_up():
    with pytest.raises(NotEnoughClientsError, match="6 clients online after 0 s, 7 needed"):
        federate(min_clients=7, wait=0.0)


def test_a_ray_simulation_begins_with_all_its_nodes(monkeypatch):
    # Stands in for Flower's engine, which registers nodes while the ServerApp already runs.
    class NodesComeOneByOne(InProcessGrid):
        polls = 0

        def get_node_ids(self):
            self.polls += 1
            return super().get_node_ids()[: self.polls]

    def slow_engine(server, app, clients):
        server(NodesComeOneByOne(app, clients), context=None)

    monkeypatch.setattr("protocl.federation.runner.simulation._run_ray", slow_engine)
    strategy = FederatedPrototypes(empty(), Options(evaluate=0.0))
    app = PrototypeClient(load, empty()).app()
    simulate(strategy, app, clients=CLIENTS, rounds=1, engine="ray")
    assert same_statistics(strategy.memory, centralised(empty(), rounds=1))


def test_books_are_kept():
    strategy, result, _ = federate(head=NearestMean())
    ledger = strategy.merged.ledger
    assert sum(sum(entry.counts) for entry in ledger) == strategy.memory.total
    assert ledger.outcomes() == {"merged": CLIENTS * ROUNDS}
    kinds = strategy.traffic.by_type()
    assert set(kinds) == {"train", "evaluate"}
    assert kinds["evaluate"]["down"] > kinds["train"]["down"] > 0
    metrics = result.train_metrics_clientapp[ROUNDS]
    assert metrics["merged"] == CLIENTS


def test_server_and_clients_go_on_after_both_were_restarted(tmp_path):
    """New processes on both sides: state comes from the disk, each sample is counted once."""

    def process(rounds: int) -> FederatedPrototypes:
        strategy = FederatedPrototypes(empty(), checkpoints=tmp_path / "server")
        strategy.resume()
        client = PrototypeClient(load, empty(), states=StatesOnDisk(tmp_path / "clients"))
        simulate(strategy, client.app(), clients=CLIENTS, rounds=rounds)
        return strategy

    process(2)
    strategy = process(2)
    assert strategy.round == 4
    assert same_statistics(strategy.memory, centralised(empty()))
    assert strategy.merged.ledger.outcomes() == {"merged": CLIENTS * ROUNDS}


def test_a_new_server_hears_all_from_clients_that_have_nothing_new(tmp_path):
    client = PrototypeClient(load, empty())
    grid = InProcessGrid(client.app(), CLIENTS)
    FederatedPrototypes(empty()).start(grid, ArrayRecord(), num_rounds=ROUNDS)
    another = FederatedPrototypes(empty(), keep_contributions=False)
    another.start(grid, ArrayRecord(), num_rounds=1)
    assert same_statistics(another.memory, centralised(empty()))


def test_server_set_back_to_a_backup_recovers(tmp_path):
    client = PrototypeClient(load, empty())
    strategy = FederatedPrototypes(empty(), checkpoints=tmp_path)
    grid = InProcessGrid(client.app(), CLIENTS)
    strategy.start(grid, ArrayRecord(), num_rounds=2)
    back_up(tmp_path, tmp_path / "backup")
    strategy.start(grid, ArrayRecord(), num_rounds=1)
    restore(tmp_path, tmp_path / "backup")  # the clients were told that round 2 was settled
    again = FederatedPrototypes(empty(), checkpoints=tmp_path)
    assert again.resume()
    assert again.round == 2
    again.start(grid, ArrayRecord(), num_rounds=3)
    assert same_statistics(again.memory, centralised(empty()))


def test_forgetting_a_client_in_a_federation(tmp_path):
    strategy, _, grid = federate()
    strategy.forget_client("1003")
    others = [c for c in range(CLIENTS) if c != 3]
    assert same_statistics(strategy.memory, centralised(empty(), others))
    strategy.start(grid, ArrayRecord(), num_rounds=1)
    assert same_statistics(strategy.memory, centralised(empty(), others))


def test_classes_are_shared_by_name_whatever_their_numbers():
    """Two clients number the same classes differently."""
    names = {0: ["cat", "dog"], 1: ["dog", "bird", "cat"]}
    features = torch.eye(DIM)[:3]

    def named(context):
        client = int(context.node_config["partition-id"])
        labels = torch.tensor([names[client].index(n) for n in ("cat", "dog", "cat")])
        return ClientData([(features, labels)], test=(features, labels), class_names=names[client])

    strategy = FederatedPrototypes(empty())
    client = PrototypeClient(named, empty(), head=NearestMean())
    result = simulate(strategy, client.app(), clients=2, rounds=1)
    merged = strategy.merged
    counts = {merged.names[int(c)]: int(n) for c, n in zip(
        merged.memory.classes, merged.memory.counts, strict=True)}  # fmt: skip
    assert counts == {"cat": 4, "dog": 2}
    assert result.evaluate_metrics_clientapp[1]["accuracy"] == 1.0


def test_rounded_messages_keep_their_error_bound_over_rounds():
    like = empty(exact=False)
    strategy = FederatedPrototypes(like)
    client = PrototypeClient(load, like, precision="int8")
    simulate(strategy, client.app(), clients=CLIENTS, rounds=ROUNDS)
    whole = centralised(like)
    assert torch.equal(strategy.memory.counts, whole.counts)
    error = (strategy.memory.means - whole.means).abs().max()
    assert 0 < float(error) <= float(torch.cat([chunk(c, t)[0] for c in range(CLIENTS) for t in
                                                range(ROUNDS)]).abs().max()) / 254  # fmt: skip


def test_a_screen_keeps_contributions_out():
    def only_small(contributions, merged):
        return ["too many samples" if len(c.memory) > 2 else None for c in contributions]

    strategy = FederatedPrototypes(empty(), screen=only_small)
    client = PrototypeClient(load, empty())
    simulate(strategy, client.app(), clients=CLIENTS, rounds=2)
    assert same_statistics(strategy.memory, centralised(empty(), rounds=1))
    assert strategy.merged.ledger.reasons() == {"screened": CLIENTS}


def test_options_refuse_what_makes_no_sense():
    for wrong in ({"participation": 0.0}, {"evaluate": 1.5}, {"min_clients": 0}):
        with pytest.raises(ValueError, match="expected"):
            Options(**wrong)


# -- quorum -------------------------------------------------------------------------------------


class SlowGrid(InProcessGrid):
    """Some nodes answer only when asked for late replies."""

    silent: set[int]

    def pull_messages(self, message_ids):
        return [
            self._replies.pop(i)
            for i in list(message_ids)
            if i in self._replies and self._replies[i].metadata.src_node_id not in self.silent
        ]


def test_quorum_closes_the_round_and_merges_stragglers_later():
    client = PrototypeClient(load, empty())
    slow = SlowGrid(client.app(), CLIENTS)
    slow.silent = {1004}
    grid = QuorumGrid(slow, poll=0.01, quorum=0.5, grace=0.05)
    strategy = FederatedPrototypes(empty(), Options(evaluate=0.0))
    strategy.start(grid, ArrayRecord(), num_rounds=1)
    assert "1004" not in strategy.merged.clients
    slow.silent = set()
    strategy.start(grid, ArrayRecord(), num_rounds=1)
    assert strategy.merged.ledger.outcomes() == {"merged": 2 * CLIENTS}
    assert same_statistics(strategy.memory, centralised(empty(), rounds=2))


def test_a_server_does_not_outlive_an_engine_that_failed(monkeypatch):
    """Flower runs the server in a thread, which would wait for replies up to its deadline."""
    ended = []

    def failing_engine(server, app, clients):
        grid = SlowGrid(app, clients)
        grid.silent = set(grid.get_node_ids())

        def serve():
            with pytest.raises(RuntimeError, match="stopped while its server waited"):
                server(grid, context=None)
            ended.append(True)

        threads.append(threading.Thread(target=serve))
        threads[0].start()
        while not grid._replies:
            time.sleep(0.01)
        raise RuntimeError("no more Ray")

    threads: list[threading.Thread] = []
    monkeypatch.setattr("protocl.federation.runner.simulation._run_ray", failing_engine)
    strategy = FederatedPrototypes(empty(), Options(evaluate=0.0))
    with pytest.raises(RuntimeError, match="no more Ray"):
        simulate(
            strategy,
            PrototypeClient(load, empty()).app(),
            clients=CLIENTS,
            rounds=1,
            engine="ray",
        )
    threads[0].join(timeout=30)
    assert ended


def test_looks_for_replies_are_rarer_where_they_take_long():
    class SlowToLook(SlowGrid):
        looks = 0

        def pull_messages(self, message_ids):
            self.looks += 1
            time.sleep(0.05)
            return [] if self.looks < 3 else super().pull_messages(message_ids)

    class Noted(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            return False

    waits: list[float] = []
    slow = SlowToLook(PrototypeClient(load, empty()).app(), CLIENTS)
    slow.silent = set()
    strategy = FederatedPrototypes(empty(), Options(evaluate=0.0))
    strategy.start(QuorumGrid(slow, poll=0.001, stopped=Noted()), ArrayRecord(), num_rounds=1)
    assert len(waits) == 2
    assert min(waits) >= 4 * 0.05


def test_a_delta_holds_only_the_classes_that_changed():
    like = empty()
    batches = [chunk(0, 0), (torch.ones(3, DIM), torch.full((3,), 77)), chunk(0, 0)]
    client = PrototypeClient(lambda context: ClientData(batches), like)
    strategy = FederatedPrototypes(like, Options(evaluate=0.0))
    simulate(strategy, client.app(), clients=1, rounds=3)
    first, second, third = strategy.merged.ledger
    assert (first.kind, second.kind, third.kind) == ("full", "delta", "delta")
    assert second.classes == (77,)
    assert second.counts == (3,)
    assert third.classes == first.classes == tuple(chunk(0, 0)[1].unique().tolist())


def test_a_state_file_set_back_to_an_older_one_loses_and_doubles_nothing(tmp_path):
    """Numbers used before would make new statistics look like old ones."""
    like = empty()
    client = PrototypeClient(load, like, states=StatesOnDisk(tmp_path))
    strategy = FederatedPrototypes(like, Options(evaluate=0.0))
    grid = InProcessGrid(client.app(), 1)
    strategy.start(grid, ArrayRecord(), num_rounds=1)
    (file,) = tmp_path.glob("*.safetensors")
    backup = file.read_bytes()
    strategy.start(grid, ArrayRecord(), num_rounds=2)
    file.write_bytes(backup)
    strategy.start(grid, ArrayRecord(), num_rounds=1)
    assert same_statistics(strategy.memory, centralised(like, [0]))


def test_replies_of_a_round_are_let_go_before_the_next_and_requests_when_they_are_sent():
    """Flower keeps the list of replies until it has the next one."""
    heard: list[list[Message]] = []

    class Listening(FederatedPrototypes):
        def aggregate_train(self, server_round, replies):
            assert [len(before) for before in heard] == [0] * len(heard)
            heard.append(replies)
            result = super().aggregate_train(server_round, replies)
            assert len(replies) == 2
            return result

    like = PrototypeMemory(2, exact=True)
    chunk = torch.ones(3, 2), torch.zeros(3, dtype=torch.int64)
    client = PrototypeClient(lambda _: ClientData([chunk] * 3), like)
    strategy = Listening(like, Options(evaluate=0.0))
    simulate(strategy, client.app(), clients=2, rounds=3)
    assert strategy.memory.total == 18
    assert not any(hasattr(one, "content") for one in strategy._intake._asked[3])
