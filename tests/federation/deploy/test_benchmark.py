"""From a simulation to a deployment: the same task by the same settings, on any machine."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from PIL import Image

from protocl import PrototypeMemory
from protocl.backbones import BackboneConfig, build_backbone, fingerprint
from protocl.errors import ConfigError
from protocl.federation.config.compose import compose, settle_short
from protocl.federation.config.compose import load as load_settings
from protocl.federation.deploy import template
from protocl.federation.deploy.apps import Task, build_method, client_app
from protocl.federation.deploy.benchmark import benchmark_task
from protocl.federation.deploy.places import HOME, local_path
from protocl.federation.deploy.scaffold import write_deployment
from protocl.federation.deploy.server_loop import serve
from protocl.federation.deploy.settings import own_settings
from protocl.federation.runner.run import run_federation
from protocl.federation.server.state import same_statistics
from protocl.federation.wire.grid import InProcessGrid
from protocl.runner.folders import open_run
from tests.federation.deploy.test_apps import configuration

STREAM = (
    "partition=dirichlet", "partition.alpha=0.5", "partition.growth=stream", "clients=2", "seed=4",
    "benchmark.n_experiences=2", "rounds=2", "benchmark.validation=0.2", "evaluate=0.5",
)  # fmt: skip


def test_a_deployment_ends_where_the_simulation_of_its_settings_does(tmp_path, monkeypatch):
    monkeypatch.setenv(HOME, str(tmp_path / "app"))
    words = [*STREAM, f"output={tmp_path / 'runs'}", f"cache={tmp_path / 'cache'}"]
    (config,) = load_settings(words)
    run_federation(config, run := open_run(config))
    app = configuration(tmp_path / "app", *words)
    app |= {"output": "output", "client-state": "clients", "min-clients": 2}
    grid = InProcessGrid(client_app(benchmark_task), 2, run_config=app, isolate=True)
    method = build_method(benchmark_task, app, tmp_path / "app/output")
    serve(grid, method.strategy, app)  # type: ignore[arg-type]
    simulated = PrototypeMemory.load(run / "model/memory.safetensors")
    assert same_statistics(method.strategy.memory, simulated)  # type: ignore[attr-defined]
    assert sorted(path.name for path in (tmp_path / "app/clients").glob("*.safetensors"))


def test_no_path_of_the_server_is_in_what_nodes_read(tmp_path):
    folder = tmp_path / "a folder, with ünusual letters"
    write_deployment(folder, settle_short(STREAM)[0])
    travel = [p for p in folder.rglob("*") if p.is_file() and p.parent.name != "flower"]
    assert len(travel) >= 7
    assert not [p for p in travel if str(tmp_path) in p.read_text()]
    for words in (["benchmark.path=/srv/data.npz"], ["backbone.checkpoint=/srv/weights.pt"]):
        with pytest.raises(ConfigError, match=r"=/srv/.*: other machines do not have this folder"):
            write_deployment(tmp_path / "other", settle_short(words)[0])
    assert not (tmp_path / "other").exists()


def test_relative_paths_lie_below_the_folder_of_each_machine(monkeypatch):
    monkeypatch.setenv(HOME, "/this/machine")
    assert local_path("output", "output") == Path("/this/machine/output")
    assert local_path("output", "/elsewhere") == Path("/elsewhere")
    with pytest.raises(ConfigError, match="output=''"):
        local_path("output", "")
    monkeypatch.delenv(HOME)
    with pytest.raises(ConfigError, match=r"environment\.sh was sourced"):
        local_path("output", "output")
    found = own_settings({"partition-id": 3, "benchmark-path": "/data/x", "state": "/s"})
    assert found == {"benchmark.path": "/data/x"}


def test_a_node_s_own_file_takes_the_place_of_the_run_s(tmp_path):
    x = np.random.default_rng(0).random((40, 6), dtype=np.float32)
    y = np.arange(40) % 4
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    settings = settle_short(["benchmark=npz", "benchmark.path=absent.npz", "partition=iid"])[0]
    task = benchmark_task(compose(settings | {"benchmark.path": str(tmp_path / "mine.npz")}))
    assert (task.feature_dim, task.n_classes) == (6, 4)
    data = task.load(context({"partition-id": 1, "num-partitions": 2}))
    assert sum(len(labels) for _, labels in data.chunks) == 20
    with pytest.raises(ConfigError, match="partition-id=2: expected 0 to 1"):
        task.load(context({"partition-id": 2, "num-partitions": 2}))


def test_nodes_get_what_a_column_of_clients_deals(tmp_path):
    rows = "".join(f"{i},{-i},{'ab'[i % 2]},{'xyz'[i % 3]}\n" for i in range(24))
    (tmp_path / "t.csv").write_text("f,g,label,client\n" + rows)
    words = (
        "benchmark=table", f"benchmark.path={tmp_path / 't.csv'}", "benchmark.test=0.25",
        "benchmark.columns.client=client", "benchmark.n_experiences=2", "rounds=1",
    )  # fmt: skip
    (config,) = load_settings(words)
    task = benchmark_task(config)
    held = [task.load(context({"partition-id": part})) for part in range(3)]
    assert sum(len(y) for data in held for _, y in data.chunks) == 18
    with pytest.raises(ConfigError, match="partition-id=3: expected 0 to 2"):
        task.load(context({"partition-id": 3}))
    with pytest.raises(ConfigError, match="clients=2: the data name 3"):
        task.load(context({"partition-id": 0, "num-partitions": 2}))


def context(node_config: dict[str, Any]) -> Context:
    return Context(1, 1, node_config, RecordDict(), {})


def test_the_example_of_the_template_reads_a_folder_of_images(tmp_path, monkeypatch):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = np.full((9, 9, 3), 40 * number + 10 * len(part), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    source = (Path(template.__file__).parent / "task.py").read_text()
    example = source.partition("From folders of images::")[2].partition("A protected fed")[0]
    names: dict[str, Any] = {"Task": Task}
    exec(textwrap.dedent(example.replace("SIZE = 224", "SIZE = 8")), names)
    config = load_settings(["backbone=identity", f"cache={tmp_path / 'cache'}"])[0]
    task = names["new_task"](config)
    data = task.load(context({"images": str(tmp_path / "photos")}))
    ((features, labels),) = data.chunks
    assert features.shape == (6, task.feature_dim) == (6, 3 * 8 * 8)
    assert (features.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert list(data.class_names) == ["cat", "dog"]
    assert len(data.test[1]) == 6


@pytest.mark.parametrize("name", ["conv4", "identity", "resnet18_slim", "vit"])
def test_the_name_of_a_backbone_means_the_same_in_python_and_on_the_command_line(name):
    typed = compose({"backbone": name}).backbone
    found = [build_backbone(c, (3, 32, 32), 0) for c in (typed, BackboneConfig(name))]
    assert fingerprint(found[0]) == fingerprint(found[1])
