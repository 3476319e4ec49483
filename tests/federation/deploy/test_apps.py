"""A deployed method that is taken up again: other processes, other runs, other nodes."""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.config import flatten_dict
from torch import Tensor

from protocl import PrototypeMemory
from protocl.backbones import BackboneConfig, build_backbone
from protocl.checks import assert_same, sample_batch
from protocl.errors import AllFailedError, ConfigError, DataError
from protocl.federation.client.client import ClientData
from protocl.federation.config.compose import load as load_settings
from protocl.federation.config.compose import settle_short
from protocl.federation.deploy.apps import Task, build_method, client_app
from protocl.federation.deploy.scaffold import write_deployment
from protocl.federation.deploy.server_loop import serve
from protocl.federation.deploy.settings import SECTIONS, read_config
from protocl.federation.privacy.vector import StatisticsLayout
from protocl.federation.secure.client import ProtectedClient
from protocl.federation.secure.outbox import Offer, OffersOnDisk
from protocl.federation.secure.progress import Span, SummedParts
from protocl.federation.secure.running_sum import RunningSum
from protocl.federation.secure.strategy import ProtectedPrototypes
from protocl.federation.wire.grid import InProcessGrid
from protocl.memory.rows import class_id_of

NODES, PARTS, CLASSES = 5, 3, 5


def samples(node: int) -> tuple[Tensor, Tensor]:
    x, y = sample_batch(4, samples=60, seed=node)
    return x, y.unique(return_inverse=True)[1]


def load(context: Context) -> ClientData:
    node = int(context.node_config["partition-id"])
    return ClientData([load_part(node, part) for part in range(PARTS)])


def load_part(node: int, part: int) -> tuple[Tensor, Tensor]:
    x, y = samples(node)
    return x[part::PARTS], y[part::PARTS]


TASK = Task(
    load, lambda: build_backbone(BackboneConfig(), (4,), 0), feature_dim=4, n_classes=CLASSES
)


def everything(like: PrototypeMemory) -> PrototypeMemory:
    """The samples of all nodes in one place."""
    memory = like.empty_like()
    for node in range(NODES):
        memory.update(*samples(node))
    return memory


def configuration(folder: Path, *words: str, **changes: Any) -> dict[str, Any]:
    """What Flower makes of the ``pyproject.toml`` that ``deploy`` writes."""
    if not folder.exists():
        write_deployment(folder, settle_short(words)[0])
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    places = {"output": str(folder / "output"), "client-state": str(folder / "clients")}
    return flatten_dict(project["tool"]["flwr"]["app"]["config"]) | places | changes


def run(config: dict[str, Any], *, first_node: int = 1000, task: Task = TASK) -> Any:
    """A run with processes of its own, whose nodes are numbered from ``first_node``."""
    grid = InProcessGrid(client_app(task), NODES, run_config=config, isolate=True)
    contexts = grid._contexts.values()
    for i, context in enumerate(contexts):
        context.node_id = first_node + i
    grid._contexts = {context.node_id: context for context in contexts}
    grid.online = set(grid._contexts)
    strategy = build_method(task, config, Path(config["output"])).strategy
    serve(grid, strategy, config)  # type: ignore[arg-type]
    return strategy


METHODS = {
    "prototypes": (),
    "lda": ("method.head=lda", "method.head.shrinkage=0.3"),
    "screened": ("method=robust", "method.centre=exact", "method.screen=0.01"),
    "secure": ("method=protected",),
    "in the clear": ("method=protected", "method.secure=false", "method.head=ridge"),
}


@pytest.mark.parametrize("words", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("first_node", [1000, 2000])
def test_a_second_run_goes_on_and_counts_nothing_twice(
    tmp_path: Path, words: tuple[str, ...], first_node: int
) -> None:
    """Also where every node comes back as another one."""
    app = tmp_path / "app"
    half = run(configuration(app, *words, rounds=2))
    assert half.round == 2
    assert 0 < half.memory.total < NODES * 60
    done = run(configuration(app, rounds=4), first_node=first_node)
    assert done.round == 4
    assert_same(done.memory, everything(done.memory), "after both runs")
    saved = PrototypeMemory.load(app / "output/memory.safetensors")
    assert_same(saved, done.memory, "on disk")
    run(configuration(app, rounds=4))  # nothing is left to do


def test_noise_is_drawn_once(tmp_path: Path) -> None:
    """The server's folder is lost: the nodes' vectors, and so the sum, are those of before."""
    words = ("method=protected", "method.secure=false", "method.noise=local", "method.clip=9.0")
    before = run(configuration(tmp_path / "app", *words, rounds=1))
    (tmp_path / "app/output").rename(tmp_path / "lost")
    again = run(configuration(tmp_path / "app", rounds=1), first_node=2000)
    np.testing.assert_array_equal(again._sum.total, before._sum.total)
    (tmp_path / "app/output").rename(tmp_path / "lost too")
    (tmp_path / "app/clients").rename(tmp_path / "clients")
    other = run(configuration(tmp_path / "app", rounds=1))
    assert (other._sum.total != before._sum.total).mean() > 0.99


def test_other_noise_does_not_go_into_the_same_sum(tmp_path: Path) -> None:
    words = ("method=protected", "method.noise=distributed")
    app = tmp_path / "app"
    run(configuration(app, *words, rounds=1))
    louder = {"rounds": 2, "method.epsilon": 1.0}
    with pytest.raises(ConfigError, match="with other noise"):
        run(configuration(app, **louder))
    (app / "output").rename(tmp_path / "lost")
    with pytest.raises(AllFailedError, match="is an offer to another federation"):
        run(configuration(app, **louder))  # refused by every client


def test_a_sum_without_contributions_is_taken_up(tmp_path: Path) -> None:
    config = configuration(tmp_path / "app", "method=protected", "method.noise=central")
    method = build_method(TASK, config, Path(config["output"]))
    method.strategy._save(finished=0)  # type: ignore[attr-defined]
    again = build_method(TASK, config, Path(config["output"])).strategy
    assert again.resume()  # type: ignore[attr-defined]
    assert len(again.memory) == 0  # type: ignore[attr-defined]


def test_a_server_that_forgot_more_than_the_last_offer_gets_that_offer(tmp_path: Path) -> None:
    """A vector of the parts before is gone; new noise on them would be a second release."""
    app = tmp_path / "app"
    run(configuration(app, "method=protected", "method.secure=false", rounds=PARTS))
    (app / "output").rename(tmp_path / "lost")
    strategy = run(configuration(app, rounds=PARTS))
    last = strategy.memory.empty_like()
    for node in range(NODES):
        last.update(*load_part(node, PARTS - 1))
    assert_same(strategy.memory, last, "the last offer")
    assert set(strategy.summed.lost.values()) == {PARTS - 1}
    (app / "output").rename(tmp_path / "lost too")
    (app / "clients").rename(tmp_path / "clients")
    anew = run(configuration(app, rounds=PARTS)).memory
    assert_same(anew, everything(anew), "anew")


def test_a_vector_is_not_given_into_a_second_sum(tmp_path: Path) -> None:
    """Two sums tell by their difference what single clients sent; this server forgot the first."""
    app = tmp_path / "app"
    first = run(configuration(app, "method=protected", rounds=1))
    assert not first.failures
    (app / "output").rename(tmp_path / "lost")
    shutil.copytree(app / "clients", tmp_path / "clients")
    for first_node in (1000, 2000):
        again = run(configuration(app, rounds=3), first_node=first_node)
        assert "0 of 5 parties sent a vector" in again.failures[1]
        assert set(again.summed.lost.values()) == {1}
        later = again.memory.empty_like()
        for node in range(NODES):
            for part in range(1, PARTS):
                later.update(*load_part(node, part))
        assert_same(again.memory, later, "what is new to everybody")
        for folder in (app / "output", app / "clients"):
            shutil.rmtree(folder)
        shutil.copytree(tmp_path / "clients", app / "clients")
    (tmp_path / "lost").rename(app / "output")
    done = run(configuration(app, rounds=3))
    assert_same(done.memory, everything(done.memory), "restored")


@pytest.mark.parametrize("first_node", [1000, 2000])
def test_a_round_that_fails_after_masking_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_node: int
) -> None:
    """Nobody answers the request to unmask; the next run asks for the same shares again."""
    app = tmp_path / "app"

    def vanish(self: ProtectedClient, message: Message, context: Context) -> Message:
        raise ConnectionError("vanished")

    with monkeypatch.context() as patch:
        patch.setattr(ProtectedClient, "unmask", vanish)
        failed = run(configuration(app, "method=protected", rounds=1))
    assert "0 of 5 parties gave their shares" in failed.failures[1]
    assert failed.unfinished is not None
    # A client that is another node now is left out of one round, until it is known again.
    done = run(configuration(app, rounds=4), first_node=first_node)
    assert done.unfinished is None
    assert_same(done.memory, everything(done.memory), "made up for")


@pytest.mark.parametrize("first_node", [1000, 2000])
def test_a_server_that_dies_before_it_saves_a_sum_asks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_node: int
) -> None:
    app = tmp_path / "app"

    def die(self: ProtectedPrototypes, sums: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunningSum, "add", die)
        with pytest.raises(KeyboardInterrupt):
            run(configuration(app, "method=protected"))
    done = run(configuration(app, rounds=4), first_node=first_node)
    assert done.round == 4
    assert done.unfinished is None
    assert_same(done.memory, everything(done.memory), "asked again")


def test_classes_are_summed_by_name(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(CLASSES)]

    def load_named(context: Context) -> ClientData:
        """Every node numbers the classes in an order of its own."""
        shift = int(context.node_config["partition-id"])
        own = [names[(i + shift) % CLASSES] for i in range(CLASSES)]
        return ClientData(
            [(x, (y - shift) % CLASSES) for x, y in load(context).chunks], class_names=own
        )

    named = replace(TASK, load=load_named, n_classes=0, class_names=names)
    strategy = run(configuration(tmp_path / "app", "method=protected"), task=named)
    ids = torch.tensor([class_id_of(name) for name in names])
    expected = strategy.memory.empty_like()
    for node in range(NODES):
        x, y = samples(node)
        expected.update(x, ids[y])
    assert_same(strategy.memory, expected, "by name")


# -- the settings of a run ----------------------------------------------------------------------


def test_the_run_s_settings_are_those_of_the_command(tmp_path: Path) -> None:
    words = ["method.head=lda", "method.head.shrinkage=0.3", "method.precision=int8"]
    config = read_config(configuration(tmp_path / "app", *words, **{"min-clients": 4}))
    assert config.method == load_settings(words)[0].method
    # As an app says it that was written with the head's name alone.
    short = {"method.name": "prototypes", "method.head": "lda", "method.head.shrinkage": 0.3}
    assert read_config(short).method.head == config.method.head  # type: ignore[attr-defined]
    assert (config.federation.min_clients, config.federation.clients) == (4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method.name": "fedavg"}, "fedavg runs in simulation only"),
        ({"method.head.name": "tree"}, "tree"),
        ({"method.head.metrik": "cosine"}, r"did you mean method\.head\.metric\?"),
        ({"method.head_options.metric": "cosine"}, r"did you mean method\.head\.metric\?"),
        ({"method.colour": "red"}, "colour"),
        ({"method.precision": "int4"}, "int4"),
        ({"participation": 2.0}, "participation=2"),
        ({"min-clients": 0}, "clients=0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = configuration(tmp_path / "app")
    if "fedavg" in changes.values():
        config = {key: value for key, value in config.items() if not key.startswith("method.")}
    with pytest.raises(ConfigError, match=message):
        build_method(TASK, config | changes, tmp_path)
    with pytest.raises(ConfigError, match=r"no method\.name"):
        read_config({"rounds": 3})


@pytest.mark.parametrize(
    "words",
    [
        ["method.head=mahalanobis", "method.head.tukey=null"],
        ["method=protected", "method.clip=.inf"],
        ["benchmark.class_order=[3,1,2]", "partition.growth=stream", "seed=7"],
        ["limits.classes=[1,cat,'2','a,b']", "limits.max_feature=2.5", "limits.max_text=9"],
        ["backbone=resnet18", "backbone.width=null", "backbone.layers=[a,b]"],
        ["partition=flwr", "partition.options={num_shards_per_partition: 2}"],
        ["benchmark=image_folder", "benchmark.path='photos of ours, ä'"],
    ],
)
def test_what_flower_cannot_hold_is_written_as_it_is_typed(
    tmp_path: Path, words: list[str]
) -> None:
    config = read_config(configuration(tmp_path / "app", *words))
    (typed,) = load_settings(words)
    for section in SECTIONS:
        assert getattr(config, section) == getattr(typed, section), section
    assert config.seed == typed.seed


# -- what a client keeps ------------------------------------------------------------------------


def test_offers_are_read_back_and_belong_to_their_terms(tmp_path: Path) -> None:
    offer = Offer(np.arange(-3, 5), 2, 4, "me", new=True, sums=("one",), spent=True)
    kept = OffersOnDisk(tmp_path / "clients", "these terms")
    assert kept.load("node") is None
    kept.save("node", offer)
    read = kept.load("node")
    assert read is not None
    np.testing.assert_array_equal(read.vector, offer.vector)
    assert read.span == offer.span
    with pytest.raises(DataError, match="to another federation"):
        OffersOnDisk(tmp_path / "clients", "other terms").load("node")
    (file,) = (tmp_path / "clients").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(DataError, match="is damaged"):
        kept.load("node")


def test_an_offer_is_on_disk_before_it_leaves(tmp_path: Path) -> None:
    """A process that dies on the way repeats it to the bit; a client that lost nothing goes on."""
    memory = PrototypeMemory(4, exact=True)
    layout = StatisticsLayout(memory, range(CLASSES))
    InProcessGrid(client_app(TASK), 1)  # lets messages be made here

    def send(summed: int, folder: Path) -> RecordDict:
        client = ProtectedClient(load, layout, secure=False, keep=folder)
        request = {"round": summed + 1, "summed": summed, "layout-digest": layout.digest}
        message = Message(RecordDict({"config": ConfigRecord(request)}), 1, "train")
        return client.send(message, Context(1, 1, {"partition-id": 0}, RecordDict(), {})).content

    first = send(0, tmp_path / "node")
    again = send(0, tmp_path / "node")
    assert again["answer"] == first["answer"]
    then = send(1, tmp_path / "node")["answer"]
    assert (then["start"], then["end"]) == (1, 2)  # type: ignore[index]
    assert then["client"] == first["answer"]["client"]  # type: ignore[index]
    (tmp_path / "blocked").write_text("a file where the folder should be")
    with pytest.raises(FileExistsError):
        send(0, tmp_path / "blocked")


def test_a_copied_client_is_summed_once(tmp_path: Path) -> None:
    """Two nodes whose states are copies of one file are one client."""
    app = tmp_path / "app"
    run(configuration(app, "method=protected", rounds=1))
    copy = (app / "clients/partition-0.offer.safetensors").read_bytes()
    (app / "clients/partition-1.offer.safetensors").write_bytes(copy)
    done = run(configuration(app, rounds=PARTS))
    assert done.contributors == {1: NODES, 2: NODES - 1, 3: NODES - 1}
    assert not done.failures


def test_robust_merging_is_deployed_with_its_rule(tmp_path: Path) -> None:
    strategy = run(configuration(tmp_path / "app", "method=robust", rounds=3))
    expected = strategy.merge([strategy.merged.contribution_of(c) for c in strategy.merged.clients])
    assert_same(strategy.memory, expected, "the rule's memory")
    assert not torch.allclose(strategy.memory.means, strategy.merged.memory.means)


def test_a_client_is_known_again_under_another_node() -> None:
    summed = SummedParts()
    summed.recognise("a", 1, 0)
    summed.add({1: Span(0, 2)})
    with pytest.raises(DataError, match="from part 0 on, the sum holds 2 parts"):
        summed.recognise("a", 7, 0)
    assert (summed.of(7), summed.of(1)) == (2, 0)
    summed.recognise("a", 7, 2)
    summed.recognise("b", 1, 0)
    summed.recognise("c", 9, 1)  # what was before it is in the sum of another server
    summed.add({9: Span(1, 3)})
    assert (summed.of(9), summed.lost) == (3, {9: 1})
