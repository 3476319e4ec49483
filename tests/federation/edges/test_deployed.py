"""A deployed tree: edges whose server and node are processes of their own, which die and move."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context
from flwr.common.config import flatten_dict

from protocl import PrototypeMemory
from protocl.backbones import BackboneConfig, build_backbone
from protocl.checks import sample_batch
from protocl.cli.main import main
from protocl.errors import AllFailedError, ConfigError, DataError
from protocl.federation.books.audit import audit
from protocl.federation.books.backup import back_up
from protocl.federation.books.requests import Requests, Wanted
from protocl.federation.cli.forget import forget, let_go
from protocl.federation.client.client import ClientData
from protocl.federation.config.compose import settle_short
from protocl.federation.deploy.apps import Task, build_strategy, client_app
from protocl.federation.deploy.scaffold import write_deployment
from protocl.federation.deploy.server_loop import serve
from protocl.federation.edges.audit import audit_tree
from protocl.federation.edges.certificates import certificates
from protocl.federation.edges.door import own_key, read_roster
from protocl.federation.edges.files import load_holding, save_holding
from protocl.federation.exactly_once.server import name_of_life
from protocl.federation.server.state import same_statistics
from protocl.federation.wire.grid import InProcessGrid
from protocl.federation.wire.traffic import Ledger

CLIENTS, PARTS = 5, 1


def chunk(client: int, part: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = sample_batch(4, samples=30, seed=client)
    return x[part::PARTS], y.unique(return_inverse=True)[1][part::PARTS]


def load(context: Context) -> ClientData:
    client = int(context.node_config["partition-id"])
    return ClientData([chunk(client, part) for part in range(PARTS)])


TASK = Task(load, lambda: build_backbone(BackboneConfig(), (4,), 0), feature_dim=4, n_classes=5)


class Tree:
    """Every round of an edge, and of the root, is a run of its own, by processes of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder = folder
        write_deployment(folder, settle_short([f"clients={CLIENTS}", "edges=2", *words])[0])
        self.places = {"edge-0": [0, 1], "edge-1": [2, 3, 4]}
        self.rounds = dict.fromkeys((*self.places, "root"), 0)
        self.folders = dict.fromkeys(range(CLIENTS), "")
        for client in range(CLIENTS):
            self.folders[client] = str(folder / f"client-{client}")

    def config(self, name: str) -> dict[str, Any]:
        project = tomllib.loads((self.folder / name / "pyproject.toml").read_text())
        changes = {
            "output": str(self.output(name)), "client-state": "unused", "wait": 0.1,
            "min-clients": 1, "rounds": self.rounds[name], "evaluate": 0.0,
        }  # fmt: skip
        return flatten_dict(project["tool"]["flwr"]["app"]["config"]) | changes

    def output(self, name: str) -> Path:
        return self.folder / name / "output"

    def edge(self, name: str) -> Any:
        self.rounds[name] += 1
        config = self.config(name)
        grid = InProcessGrid(client_app(TASK), CLIENTS, run_config=config, isolate=True)
        grid.online = {1000 + client for client in self.places[name]}
        for node, context in grid._contexts.items():
            context.node_config["state"] = self.folders[node - 1000]
        strategy = build_strategy(TASK, config)
        serve(grid, strategy, config)  # type: ignore[arg-type]
        return strategy

    def root(self) -> PrototypeMemory:
        self.rounds["root"] += 1
        config = self.config("root")
        grid = InProcessGrid(client_app(TASK), len(self.places), run_config=config, isolate=True)
        for context, name in zip(grid._contexts.values(), sorted(self.places), strict=True):
            context.node_config["edge-output"] = str(self.output(name))
        strategy = build_strategy(TASK, config)
        serve(grid, strategy, config)  # type: ignore[arg-type]
        return strategy.memory

    def round(self) -> PrototypeMemory:
        for name in self.places:
            self.edge(name)
        return self.root()

    def name_of(self, client: int, edge: str) -> str:
        """As the edge's ledger has it."""
        (file,) = Path(self.folders[client]).glob("*.safetensors")
        from safetensors import safe_open

        with safe_open(file, framework="pt") as state:
            life = json.loads(state.metadata()["state"])
        lives = set(map(name_of_life, (life["epoch"], *life["replaces"])))
        ledger = Ledger.load(self.output(edge) / "ledger.jsonl")
        return next(entry.client for entry in ledger if entry.epoch in lives)

    def write_rosters(self) -> None:
        keys = {n: (self.output(n) / "edge.pub").read_text().strip() for n in self.places}
        for name in self.places:
            (self.output(name) / "edges.json").write_text(json.dumps(keys))


def expected(like: PrototypeMemory, clients: list[int]) -> PrototypeMemory:
    total = like.empty_like()
    for client in clients:
        for part in range(PARTS):
            total.update(*chunk(client, part))
    return total


def test_a_deployed_tree_is_the_sum_and_a_client_moves(tmp_path: Path):
    tree = Tree(tmp_path / "tree, ä", "method.head=lda")
    assert len(tree.root()) == 0  # no edge has anything yet
    merged = tree.round()
    assert same_statistics(merged, expected(merged, list(range(CLIENTS))))
    tree.write_rosters()
    client = tree.name_of(1, "edge-0")
    release = tree.output("edge-0") / "releases" / f"{client}.release.json"
    words = ["federate", "release", str(tree.output("edge-0")), f"client={client}", "to=edge-1"]
    assert main(words) == 0
    tree.places = {"edge-0": [0], "edge-1": [1, 2, 3, 4]}
    strategy = tree.edge("edge-1")  # too early: it has no release yet
    assert "counted at edge 'edge-0'" in str([entry.reason for entry in strategy.merged.ledger])
    for _ in range(2):
        assert not release.exists()
        merged = tree.round()
    assert same_statistics(merged, expected(merged, [0, 2, 3, 4]))
    first = release.read_text()
    (tree.output("edge-0") / "edge.key").unlink()  # rotated: what was given out is signed anew
    tree.root()
    assert release.read_text() != first
    tree.write_rosters()
    shutil.copy(release, Path(tree.folders[1]) / "partition-1.release.json")
    merged = tree.round()
    assert same_statistics(merged, expected(merged, list(range(CLIENTS))))
    merged = tree.round()
    assert same_statistics(merged, expected(merged, list(range(CLIENTS))))


def test_an_edge_loses_what_it_told_the_root_and_a_withdrawal_passes_both_levels(tmp_path: Path):
    tree = Tree(tmp_path / "tree")
    tree.round()
    output = tree.output("edge-1")
    kept = tmp_path / "backup"
    shutil.copytree(output, kept)
    forget(output, f"client={tree.name_of(3, 'edge-1')}")
    merged = tree.round()
    assert same_statistics(merged, expected(merged, [0, 1, 2, 4]))
    for file in kept.glob("*"):  # a backup of all but the list of the forgotten, which stays
        if file.name != "checkpoint":
            shutil.copy(file, output / file.name)
    merged = tree.round()
    assert same_statistics(merged, expected(merged, [0, 1, 2, 4]))
    (output / "above.json").unlink()
    merged = tree.round()
    assert same_statistics(merged, expected(merged, [0, 1, 2, 4]))
    lost = [e for e in Ledger.load(tree.output("root") / "ledger.jsonl") if "lost" in e.reason]
    assert not lost


@pytest.mark.parametrize("door", ["command", "request", "request when all is done"])
def test_whichever_door_a_client_is_forgotten_by_the_root_is_without_it(tmp_path, door):
    tree = Tree(tmp_path / "tree")
    tree.round()
    output, client = tree.output("edge-1"), tree.name_of(3, "edge-1")
    sums = expected(PrototypeMemory(4, exact=True), [2, 3, 4]).get_buffer("sum")[0].numpy()
    needle = sums.tobytes()
    assert needle in (output / "row.safetensors").read_bytes()
    if door == "command":
        assert main(["federate", "forget", str(output), f"client={client}"]) == 0
    else:
        Requests(output / "checkpoint").leave(Wanted("client", client))
        tree.rounds["edge-1"] -= door != "request"
        tree.edge("edge-1")
    # Before the root asks again: not in what the edge told it either.
    files = [file for file in output.rglob("*") if file.is_file()]
    assert {"row.safetensors", "above.json", "books.sqlite"} <= {file.name for file in files}
    assert [file for file in files if needle in file.read_bytes()] == []
    assert json.loads((output / "ledger.jsonl").read_text().splitlines()[1])["classes"] == []
    root = tree.output("root")
    back_up(root, tmp_path / "b")
    keys = set(sqlite3.connect(root / "checkpoint/keys.sqlite").execute("SELECT name FROM keys"))
    merged = tree.root()
    assert same_statistics(merged, expected(merged, [0, 1, 2, 4]))
    # What the root had of the edge cannot be read any more, nor can a backup of it.
    names = sqlite3.connect(root / "checkpoint/keys.sqlite").execute("SELECT name FROM keys")
    assert len(keys - set(names)) >= 2
    assert audit(root).forgotten == 1
    assert main(["federate", "restore", str(root), str(tmp_path / "b")]) == 0
    assert len(PrototypeMemory.load(root / "memory.safetensors")) == 5
    assert PrototypeMemory.load(root / "memory.safetensors").total == 60
    merged = tree.root()
    assert same_statistics(merged, expected(merged, [0, 1, 2, 4]))


def found_of(tree: Tree) -> dict[str, tuple[str, bool]]:
    found = audit_tree(tree.output("root"), [tree.output(name) for name in tree.places])
    return {one.name: ("; ".join(one.faults) or one.text, one.compared) for one in found}


def test_the_root_s_audit_takes_the_folders_of_the_edges(tmp_path: Path, capsys):
    tree = Tree(tmp_path / "tree", "method.head=lda")
    tree.round()
    tree.edge("edge-0")  # goes on, and the root has what it had
    root, folders = str(tree.output("root")), [str(tree.output(name)) for name in tree.places]
    assert main(["federate", "audit", root, *folders]) == 0
    said = capsys.readouterr().out
    assert "edge-1: row 1 (client 1001 of the root) is, bit for bit, what its books" in said
    assert "2 of 2 edges are at the root what their books sum to" in said
    assert main(["federate", "audit", root, folders[0]]) == 3
    assert "client 1001 of the root: no folder was given of the edge" in capsys.readouterr().err
    assert main(["federate", "audit", folders[0], folders[1]]) == 2  # no root

    assert main(["federate", "certificates", folders[1]]) == 0
    assert "nothing was forgotten" in capsys.readouterr().out
    client = tree.name_of(3, "edge-1")
    forget(tree.output("edge-1"), f"client={client}")
    assert [compared for _, compared in found_of(tree).values()] == [True, False]
    assert "pending at: root" in found_of(tree)["edge-1"][0]
    (pending,) = certificates(tree.output("edge-1"))
    assert (pending.what, list(pending.levels), pending.pending) == (
        f"client {client}", ["edge-1"], ("root",)
    )  # fmt: skip
    tree.root()
    assert next(certificates(tree.output("edge-1"))).pending == ("root",)  # it has not heard
    tree.root()
    for _ in range(2):  # of what its node heard, then of what is in its books
        (done,) = certificates(tree.output("edge-1"))
        assert (list(done.levels), done.pending) == (["edge-1", "root"], ())
        (of_root,) = certificates(tree.output("root"))
        assert of_root.levels["server"]["after"] == done.levels["root"]["after"]
        tree.edge("edge-1")
    (tree.output("edge-1") / "above.json").unlink()
    assert next(certificates(tree.output("edge-1"))).pending == ()
    assert audit(tree.output("edge-1")).certificates == 2
    assert main(["federate", "certificates", folders[1]]) == 0
    assert f"client {client}: complete\n  edge-1: " in capsys.readouterr().out
    Requests(tree.output("edge-1") / "checkpoint").leave(Wanted("class", "2"))
    asked = list(certificates(tree.output("edge-1")))[-1]
    assert (asked.what, asked.pending) == ("asked to forget class 2", ("edge-1", "root"))


def test_an_edge_that_sends_another_row_than_its_books_is_named(tmp_path: Path, capsys):
    tree = Tree(tmp_path / "tree")
    for name in tree.places:
        tree.edge(name)
    row = tree.output("edge-1") / "row.safetensors"
    held, values = load_holding(row)
    held.memory.update(torch.ones(1, 4), torch.tensor([2]))
    save_holding(row, held.memory, held.names, **values)
    tree.root()
    words = [str(tree.output(name)) for name in ("root", "edge-0", "edge-1")]
    assert main(["federate", "audit", *words]) == 3
    found = " ".join(capsys.readouterr().err.split())
    assert (
        "edge-1: row 1 (client 1001 of the root) is not what its books sum to: count of classes 2;"
        in found
    )
    assert "edge-0" not in found


def test_what_is_damaged_or_asked_for_wrongly_is_said(tmp_path: Path):
    tree = Tree(tmp_path / "tree")
    tree.round()
    output = tree.output("edge-0")
    client = tree.name_of(0, "edge-0")
    with pytest.raises(ConfigError, match=r"to=edge-1: .*has no edges"):
        let_go(output, client, "edge-1")
    with pytest.raises(ConfigError, match="has no books"):
        let_go(tmp_path, client, "edge-1")
    tree.write_rosters()
    with pytest.raises(ConfigError, match=r"'nobody' contributed nothing; clients are 100"):
        let_go(output, "nobody", "edge-1")
    for wrong in ([], [str(output)], [str(output), "client=1"], [str(output), "client=1", "to="]):
        assert main(["federate", "release", *wrong]) == 2
    asked = output / "checkpoint/requests"
    request = Requests(asked.parent).leave(Wanted("client", client))
    wrong = {"cut": "{", "empty": "{}", "list": "[1]", "move": '{"kind": "move", "name": "1"}'}
    for name, content in wrong.items():
        (asked / f"{name}.json").write_text(content)
    tree.edge("edge-0")
    found = sorted(path.name for path in asked.iterdir())
    assert found == sorted([*(f"{name}.refused" for name in wrong), f"{request}.answer"])
    with pytest.raises(ConfigError, match="was forgotten, and can go nowhere"):
        let_go(output, client, "edge-1")
    (output / "edges.json").write_text('{"edge-1": "00"}')
    with pytest.raises(ConfigError, match="the keys of edge-1 have not 32 bytes"):
        read_roster(output / "edges.json")
    (output / "edges.json").write_text("[")
    with pytest.raises(ConfigError, match="no list of edges"):
        read_roster(output / "edges.json")
    assert (output / "edge.key").stat().st_mode & 0o777 == 0o600
    assert own_key(output / "edge.key") == own_key(output / "edge.key")
    for content in (b"", b"x" * 100, (output / "memory.safetensors").read_bytes()):
        (output / "row.safetensors").write_bytes(content)
        with pytest.raises(DataError, match=r"row\.safetensors is"):
            load_holding(output / "row.safetensors")
    (tree.output("edge-1") / "row.safetensors").write_bytes(b"")
    with pytest.raises(AllFailedError, match=r"row\.safetensors is"):
        tree.root()


def test_an_edge_whose_rule_is_not_in_its_books_forgets_and_leaves_no_row(tmp_path: Path, capsys):
    tree = Tree(tmp_path / "tree", "method=fedcof")
    before = tree.round()
    output, client = tree.output("edge-1"), tree.name_of(3, "edge-1")
    assert main(["federate", "forget", str(output), f"client={client}"]) == 0
    assert "row.safetensors is removed; start the server" in " ".join(
        capsys.readouterr().out.split()
    )
    assert same_statistics(tree.root(), before)
    tree.edge("edge-1")
    assert (rest := tree.root()).total == before.total - len(chunk(3, 0)[1])
    assert rest.estimated == before.estimated != ""


def test_what_cannot_be_a_tree_is_not_deployed(tmp_path: Path):
    with pytest.raises(ConfigError, match="method=protected has no sums"):
        write_deployment(tmp_path / "app", settle_short(["edges=2", "method=protected"])[0])
    assert not (tmp_path / "app").exists()


@pytest.mark.parametrize("method", ["fedcof", "robust"])
def test_an_audit_says_which_edges_it_could_not_compare_and_why(tmp_path: Path, capsys, method):
    tree = Tree(tmp_path / "tree", f"method={method}")
    tree.round()
    folders = [str(tree.output(name)) for name in ("root", *tree.places)]
    assert main(["federate", "audit", *folders]) == 0
    said = capsys.readouterr().out
    assert said.count("is not compared: a rule merged its clients, which is not in its books") == 2
    assert "0 of 2 edges are at the root what their books sum to; 2 were not compared" in said
