"""Trees of servers: equal to one server, bit for bit, whatever goes through them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl import PrototypeMemory
from protocl.cli.main import main
from protocl.errors import ConfigError
from protocl.federation import ClientData, FederatedPrototypes, InProcessGrid, PrototypeClient
from protocl.federation.client.state import StatesInProcess
from protocl.federation.config.compose import load
from protocl.federation.edges.door import EdgeDoor, sign_release
from protocl.federation.edges.limits import limits_of_edge, share_of
from protocl.federation.edges.simulated import SimulatedEdge, SimulatedEdges
from protocl.federation.methods.group_means.fedcof import GroupMerge
from protocl.federation.robust.rules import ConsistencyScreen, RobustMerge
from protocl.federation.runner.run import FederatedRun
from protocl.federation.secure.protocol.identity import new_private_key, public_key
from protocl.federation.server.sampling import Options
from protocl.federation.server.state import MergedMemory, same_statistics
from protocl.federation.wire.limits import WIDEST, Limits
from protocl.federation.wire.messages import Contribution, MessageReader, RejectedError, encode
from protocl.federation.wire.traffic import Traffic
from protocl.memory.batch import Level
from protocl.memory.estimates.subsamples import SubSamples
from protocl.model.folder import read_memory
from protocl.runner.context import RunContext
from protocl.runner.folders import open_run

DIM, QUIET = 3, Options(evaluate=0.0)
KEYS = {f"e{n}": new_private_key() for n in range(3)}


def data_of(number: int, rounds: int = 3) -> ClientData:
    """None at all of every fourth client in the first round; classes of its own of every third."""
    generator = torch.Generator().manual_seed(number)
    chunks = []
    for chunk in range(rounds):
        size = 0 if chunk == 0 and number % 4 == 3 else 1 + (number + chunk) % 4
        x = torch.randn(size, DIM, generator=generator) * 10 ** (number % 3)
        chunks.append((x, torch.arange(size) % 2 + number % 3))
    return ClientData(chunks)


def load_data(context: Context) -> ClientData:
    return data_of(int(context.node_config["partition-id"]))


def everything(like: PrototypeMemory, clients: range | list[int], rounds: int = 3) -> Any:
    total = like.empty_like()
    for number in clients:
        for x, y in data_of(number).chunks[:rounds]:
            total.update(x, y)
    return total


class Tree:
    """Edges with grids that a test can disturb."""

    def __init__(
        self, empty: PrototypeMemory, shares: list[range], *, states: Any = None,
        lost: float = 0.0, late: float = 0.0, options: Options = QUIET,
        strategy: Callable[[int], FederatedPrototypes] | None = None,
    ) -> None:  # fmt: skip
        self.states = states or StatesInProcess()
        self.client = PrototypeClient(load_data, empty, states=self.states)
        self.root = FederatedPrototypes(
            empty, Options(evaluate=0.0, limits=limits_of_edge(Limits(), 100)), rows=True
        )
        doors = {name: public_key(key) for name, key in KEYS.items()}
        self.traffic = Traffic()

        def build(number: int) -> SimulatedEdge:
            grid = InProcessGrid(
                self.client.app(), len(shares[number]), first=shares[number].start,
                lost=lost, late=late, seed=number,
            )  # fmt: skip
            door = EdgeDoor(f"e{number}", doors)
            made = FederatedPrototypes(empty, options, door=door)
            return SimulatedEdge(
                strategy(number) if strategy else made, grid, self.traffic
            )  # fmt: skip

        self.app = SimulatedEdges(build)
        self.grid = InProcessGrid(self.app.app(), len(shares))

    def edge(self, number: int) -> SimulatedEdge:
        return self.app.edges[number]

    def rounds(self, number: int) -> PrototypeMemory:
        self.root.start(self.grid, ArrayRecord(), num_rounds=number)
        return self.root.memory


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    level=st.sampled_from(["mean", "diagonal", "shared", "full"]),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    lost=st.sampled_from([0.0, 0.4]),
    late=st.sampled_from([0.0, 0.3]),
)
def test_a_tree_is_the_flat_sum(level: Level, sizes: list[int], lost: float, late: float):
    empty, starts = PrototypeMemory(DIM, level, exact=True), [sum(sizes[:n]) for n in range(5)]
    shares = [range(start, start + size) for start, size in zip(starts, sizes, strict=False)]
    tree = Tree(empty, shares, lost=lost, late=late)
    tree.rounds(2)
    for edge in tree.app.edges.values():
        edge.grid.lost = edge.grid.late = 0.0  # type: ignore[attr-defined]
    merged = tree.rounds(3)
    assert same_statistics(merged, everything(empty, range(sum(sizes))))
    flat = FederatedPrototypes(empty, QUIET)
    flat.start(InProcessGrid(tree_free_client(empty), sum(sizes)), ArrayRecord(), num_rounds=3)
    assert same_statistics(merged, flat.memory)


def tree_free_client(empty: PrototypeMemory) -> Any:
    return PrototypeClient(load_data, empty).app()


def test_in_floating_point_a_tree_is_the_flat_sum_up_to_rounding():
    empty = PrototypeMemory(DIM, "shared")
    merged, whole = Tree(empty, [range(3), range(3, 8)]).rounds(3), everything(empty, range(8))
    torch.testing.assert_close(merged.sums, whole.sums, rtol=1e-14, atol=1e-12)
    torch.testing.assert_close(merged.second_moment, whole.second_moment, rtol=1e-14, atol=1e-12)


def test_an_edge_sends_nothing_where_nothing_is_new_and_rows_replace_each_other():
    tree = Tree(PrototypeMemory(DIM, exact=True), [range(2), range(2, 5)])
    tree.rounds(5)
    outcomes = tree.root.merged.ledger.outcomes
    assert [outcomes(number)["merged"] for number in (4, 5)] == [0, 0]
    assert [entry.outcome for entry in tree.root.merged.ledger if entry.client == "1000"] == [
        "replaced", "replaced", "merged",
    ]  # fmt: skip
    assert tree.traffic.total("up", 1) > 0


def test_a_withdrawal_reaches_the_root_with_the_next_row_and_is_pending_until_then():
    empty = PrototypeMemory(DIM, "shared", exact=True)
    tree = Tree(empty, [range(2), range(2, 5)])
    tree.rounds(3)
    edge = tree.edge(1)
    edge.strategy.forget_client("1003")
    assert (len(edge.strategy.withdrawn), edge.state.standing.withdrawn) == (1, 0)
    tree.rounds(1)
    assert edge.state.standing.withdrawn == 0  # sent, and the edge has not heard that it arrived
    merged = tree.rounds(1)
    assert edge.state.standing.withdrawn == 1
    assert same_statistics(merged, everything(empty, [0, 1, 2, 4]))
    assert not any("lost with" in entry.reason for entry in tree.root.merged.ledger)


def test_an_edge_that_lost_its_last_client_says_so():
    empty = PrototypeMemory(DIM, "shared", exact=True)
    tree = Tree(empty, [range(1), range(1, 3)])
    tree.rounds(3)
    tree.edge(0).strategy.forget_client("1000")
    assert same_statistics(tree.rounds(1), everything(empty, [1, 2]))


def test_classes_that_an_edge_forgets_and_an_edge_that_the_root_forgets():
    empty = PrototypeMemory(DIM, exact=True)
    tree = Tree(empty, [range(3), range(3, 6)])
    tree.rounds(3)
    tree.edge(0).strategy.forget_classes([0])
    expected = everything(empty, range(3))
    expected.forget([0])
    assert same_statistics(tree.rounds(1), expected + everything(empty, range(3, 6)))
    tree.root.forget_client("1000")
    assert same_statistics(tree.rounds(2), everything(empty, range(3, 6)))


# -- clients that move --------------------------------------------------------------------------


def moved(tree: Tree, number: int, source: int, target: int) -> None:
    """The client's node answers to another edge from now on, with the signed release."""
    edge = tree.edge(source)
    (client,) = [name for name in edge.strategy.merged.clients if name.startswith(f"{number}")]
    edge.strategy.release_client(client, f"e{target}")
    tree.rounds(2)
    assert edge.state.standing.withdrawn == len(edge.strategy.withdrawn)
    release = edge.strategy.withdrawn[-1].release(f"e{source}")
    with tree.states.open(f"partition-{number - 1000}", tree.root.empty) as state:
        state.release = sign_release(release, KEYS[f"e{source}"])
    contexts = tree.edge(target).grid._contexts  # type: ignore[attr-defined]
    contexts[number] = edge.grid._contexts.pop(number)  # type: ignore[attr-defined]
    edge.grid.online.discard(number)  # type: ignore[attr-defined]
    tree.edge(target).grid.online.add(number)  # type: ignore[attr-defined]


def test_a_client_moves_with_a_signed_release_and_comes_back():
    empty = PrototypeMemory(DIM, "shared", exact=True)
    tree = Tree(empty, [range(2), range(2, 4), range(4, 5)])
    for source, target in ((0, 1), (1, 2), (2, 0), (0, 1)):
        tree.rounds(1)
        moved(tree, 1001, source, target)
        merged = tree.rounds(1)
        edges = [tree.edge(n).strategy for n in range(3)]
        assert [1001 in tree.edge(n).grid.online for n in range(3)][target]  # type: ignore[attr-defined]
        assert merged.total == sum(edge.memory.total for edge in edges)
    assert same_statistics(tree.rounds(2), everything(empty, range(5)))
    edges[1].forget_client("1001")
    with pytest.raises(ValueError, match="was forgotten, and can go nowhere"):
        edges[1].release_client("1001", "e0")


def test_without_a_release_a_client_counts_where_it_was_and_is_told():
    empty = PrototypeMemory(DIM, exact=True)
    tree = Tree(empty, [range(2), range(2, 4)])
    tree.rounds(3)
    contexts = tree.edge(1).grid._contexts  # type: ignore[attr-defined]
    contexts[1001] = tree.edge(0).grid._contexts[1001]  # type: ignore[attr-defined]
    tree.edge(1).grid.online.add(1001)  # type: ignore[attr-defined]
    assert same_statistics(tree.rounds(2), everything(empty, range(4)))
    reasons = [e.reason for e in tree.edge(1).strategy.merged.ledger if e.outcome == "failed"]
    assert "counted at edge 'e0', not at 'e1'" in reasons[-1]


def test_a_release_is_of_one_client_for_one_edge_and_signed():
    tree = Tree(PrototypeMemory(DIM, exact=True), [range(2), range(2, 4)])
    tree.rounds(1)
    first = tree.edge(0).strategy
    first.release_client("1000", "e1")
    release = first.withdrawn[-1].release("e0")
    door = EdgeDoor("e1", {name: public_key(key) for name, key in KEYS.items()})
    epoch = first.merged.known._lives["1000"][-1]

    def shown(text: str, life: str = epoch) -> int:
        memory = everything(tree.root.empty, [0])
        sent = encode(Contribution(memory, life, 1, "full", release=text))
        return door(MessageReader(tree.root.empty).read(*sent)).moves

    good = sign_release(release, KEYS["e0"])
    assert shown(good) == 1
    for text, life, message in (
        (sign_release(release, KEYS["e1"]), epoch, "did not sign"),
        (sign_release(release._replace(source="e9"), KEYS["e0"]), epoch, "did not sign"),
        (good.replace('"e1"', '"e2"'), epoch, "did not sign"),
        (sign_release(release._replace(target="e2"), KEYS["e0"]), epoch, "for edge 'e2'"),
        (good, "another life", "another client"),
        (good[:-1], epoch, "no release"),
        (good.replace(": 1", ": -1"), epoch, "number=-1"),
        (json.dumps({"release": {"client": "ä"}, "signature": ""}), epoch, "no release"),
        ("ä" * 5000, epoch, "release: expected a text"),
    ):
        with pytest.raises(RejectedError, match=message):
            shown(text, life)


# -- what is refused, and limits ----------------------------------------------------------------


def test_robust_merging_is_refused_at_the_root_by_name_and_runs_at_the_edges():
    empty = PrototypeMemory(DIM, exact=True)
    with pytest.raises(ValueError, match="merge looks at clients side by side, and rows"):
        FederatedPrototypes(empty, merge=RobustMerge("mean"), rows=True)
    with pytest.raises(ValueError, match="screen looks at clients side by side"):
        FederatedPrototypes(empty, screen=ConsistencyScreen(), rows=True)
    tree = Tree(
        empty, [range(4), range(4, 8)],
        strategy=lambda number: FederatedPrototypes(empty, QUIET, merge=RobustMerge()),
    )  # fmt: skip
    merged = tree.rounds(2)
    parts = [tree.edge(n).strategy.memory for n in range(2)]
    assert same_statistics(merged, parts[0] + parts[1])


def test_rows_are_for_roots_and_contributions_of_clients_for_edges():
    empty = PrototypeMemory(DIM, exact=True)
    for row in (True, False):
        sent = encode(Contribution(everything(empty, [0]), "life", 1, "full", row=row))
        assert MessageReader(empty, rows=row).read(*sent).row is row
        with pytest.raises(RejectedError, match=f"row={row}"):
            MessageReader(empty, rows=not row).read(*sent)
        sent[1]["row"] = "yes"
        with pytest.raises(RejectedError, match="row='yes'"):
            MessageReader(empty, rows=row).read(*sent)


@pytest.mark.parametrize("level", ["diagonal", "shared", "full"])
def test_a_row_may_have_two_words(level: Level):
    empty = PrototypeMemory(DIM, level, exact=True)
    parts = empty.empty_like().update(torch.zeros(1, DIM), torch.tensor([0])).parts()
    parts["second"] = torch.full_like(parts["second"], 2**62)
    edge = MergedMemory(empty)
    for number in range(3):
        one = Contribution(PrototypeMemory.from_parts(empty, parts), f"{number}", 1, "full")
        edge.accept(MessageReader(empty).read(*encode(one)), client=f"{number}")
    root, reader = MergedMemory(empty), MessageReader(empty, limits_of_edge(Limits(), 3), rows=True)
    for seq, more in enumerate((0, 1), start=1):
        memory = edge.memory + everything(empty, range(more))
        row = reader.read(*encode(Contribution(memory, "edge", seq, "full", row=True)))
        root.accept(row, client="edge")
        assert same_statistics(root.memory, memory)
    root.forget_client("edge")
    assert len(root.memory) == 0


@given(clients=st.integers(1, 10**9), most=st.integers(1, WIDEST))
def test_limits_of_an_edge_are_one_client_s_times_its_clients(clients: int, most: int):
    limits = Limits(max_count=most, max_bytes=most)
    edge = limits_of_edge(limits, clients)
    assert edge.max_count == edge.max_bytes == min(most * clients, WIDEST)
    assert edge.max_classes <= edge.max_classes_in_all == limits.max_classes_in_all
    assert limits.share("sum") <= edge.share("sum") <= WIDEST
    assert limits_of_edge(limits, 1) == limits


@given(st.integers(1, 50), st.integers(0, 500))
def test_every_client_has_one_edge(edges: int, clients: int):
    shares = [share_of(number, edges, clients) for number in range(edges)]
    assert [client for share in shares for client in share] == list(range(clients))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# -- from the command line ----------------------------------------------------------------------


def run(tmp_path: Path, *words: str) -> FederatedRun:
    (config,) = load([*words, f"output={tmp_path}"])
    federated = FederatedRun(RunContext("federation", config, open_run(config)))
    federated.finish()
    return federated


@pytest.mark.parametrize("words", [("method.head=lda",), ("lost=0.3", "late=0.2")])
def test_edges_on_digits_are_one_place_bit_for_bit(tmp_path: Path, words: tuple[str, ...]):
    words = ("federation=digits", "clients=7", "rounds=8", "verify=true", "evaluate=0.5", *words)
    tree = run(tmp_path, *words, "edges=3")
    assert tree.one_place is not None
    assert tree.one_place.identical
    evaluated = tree.method.strategy.evaluations[8]  # type: ignore[attr-defined]
    assert evaluated.total > 0
    assert tree.traffic.by_type(1)["train"]["up"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("method=fedavg edges=2", "method=fedavg has no sums that edges could add up"),
        ("method=stsa_e method.training_rounds=1 edges=2", "method=stsa_e has no sums"),
        ("method=protected edges=2", "method=protected has no sums"),
        ("clients=2 edges=3 partition=iid", "edges=3: expected at most as many as clients=2"),
        ("edges=-1", "edges=-1"),
        ("edges=2 engine=ray", "edges=2 are simulated with engine=in_process only"),
    ],
)
def test_what_cannot_be_a_tree_is_refused_by_name(tmp_path: Path, words: str, message: str):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, "federation=digits", *words.split())


def test_a_tree_goes_on_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = ["federation=digits", "clients=5", "edges=2", "rounds=3", f"output={tmp_path}"]
    words += ["verify=true", "partition.growth=samples"]

    go_on = FederatedRun._after_round

    def stop(self: FederatedRun, number: int, *arguments: Any) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return go_on(self, number, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(FederatedRun, "_after_round", stop)
        main(["federate", *words])
    (folder,) = [path.parent for path in tmp_path.rglob("config.yaml")]
    assert main(["federate", *words, "resume=true"]) == 0
    result = json.loads((folder / "result.json").read_text())
    assert result["federation"]["one_place"]["identical"]


@pytest.mark.parametrize("more", ["method.means=2", "method.weights=groups"])
def test_a_tree_estimates_what_one_server_does_from_group_means(tmp_path: Path, more: str):
    words = ("federation=digits", "clients=6", "rounds=2", "method=fedcof", more, "evaluate=1")
    flat, tree = (run(tmp_path / n, *words, f"edges={n}") for n in ("0", "3"))
    server, root = flat.method.strategy, tree.method.strategy
    assert isinstance(server, FederatedPrototypes)
    assert isinstance(root, FederatedPrototypes)
    assert root.evaluations[2].total == server.evaluations[2].total > 0
    assert tree.reports[-1].accuracy == flat.reports[-1].accuracy
    alike(root.memory, server.memory)
    folder = tree.run.folder
    assert main(["federate", "forget", str(folder), "edge=1001"]) == 0
    model, _ = read_memory(folder / "model")
    assert model.total < root.memory.total


def alike(a: PrototypeMemory, b: PrototypeMemory) -> None:
    assert torch.equal(a.counts, b.counts)
    assert torch.equal(a.sums, b.sums)
    torch.testing.assert_close(a.second_moment, b.second_moment, rtol=1e-9, atol=1e-4)


def test_a_client_that_its_edge_forgets_is_out_of_the_estimate():
    means = PrototypeMemory(DIM, exact=True)
    rule = GroupMerge(SubSamples(2))
    sums = rule.sums
    tree = Tree(
        means, [range(3), range(3, 7)],
        strategy=lambda number: FederatedPrototypes(means, QUIET, merge=rule),
    )  # fmt: skip
    tree.client.sanitise = rule.subsamples
    tree.root = FederatedPrototypes(
        sums.kind(means), Options(evaluate=0.0, limits=limits_of_edge(Limits(), 100)), rows=True,
        estimate=rule.of_sums, means=2,
    )  # fmt: skip
    tree.rounds(3)
    tree.edge(1).strategy.forget_client("1005")
    merged = tree.rounds(1)
    parts = [tree.edge(n).strategy for n in range(2)]
    never = sums([part.merged.contribution_of(c) for part in parts for c in part.merged.clients])
    assert same_statistics(tree.root.merged.memory, never)
    assert same_statistics(merged, rule.of_sums(never))
    tree.root.forget_classes(1)
    assert 1 in merged
    assert 1 not in tree.root.memory
