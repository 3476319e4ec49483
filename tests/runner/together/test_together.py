"""Runs by several processes: the bits of one, what is refused, and a process that is gone."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from protocl.cli.main import main
from protocl.io.names import WEIGHTS_FILE

RANKS = 2
ROOT = Path(__file__).parents[3]
TRAIN, TEST = 4099, 131
"""Two files of training features and one for the test, none of them of a round number."""
LEFT = int((np.random.default_rng(0).integers(0, 6, TRAIN) < 2).sum()) - 1
"""All training samples of classes 0 and 1 but one."""

EXACT = ("strategy.sums.exact=true",)
RUNS = {
    "slda": ("strategy=slda", *EXACT),
    "fecam": ("strategy=fecam", *EXACT, "benchmark.validation=0.1", "seed=3"),
    "tasks": (
        "strategy=ranpac",
        "strategy.head.projection=50",
        "benchmark.task_labels=true",
        *EXACT,
    ),
    "pixels": ("strategy=nearest_mean", "backbone=identity", "strategy.eval_mb_size=4099", *EXACT),
    "few": (
        "strategy=slda", "backbone=mlp", "strategy.first_experience_epochs=2",
        "strategy.eval_mb_size=2", *EXACT,
    ),
    "floating": ("strategy=slda",),
}  # fmt: skip
ADAPTED = (
    "strategy=slda", "backbone=mlp", "strategy.first_experience_epochs=2", "strategy.lr=0.01",
    "strategy.train_mb_size=63", *EXACT,
)  # fmt: skip
PRETRAINED = (
    "backbone=mlp", "benchmark.base_classes=4", "holdout=2", "epochs=1", "rotations=false",
    "objective.batch_size=301", "lr=0.0005",
)  # fmt: skip
SCALED = ("backbone=conv4", "backbone.layers=[blocks.0]", "backbone.layer_scale=std")
REFUSED = {
    "trains its backbone in every experience": ["run", "strategy=napa_vq"],
    "backbone.layer_scale=std": ["run", "strategy=slda", *SCALED],
    "unknown=true scores the samples": ["run", "strategy=slda", "unknown=true"],
    "runs of kind 'federation' are not distributed": ["federate", "federation=digits"],
    "jobs=2: under torchrun": ["run", "strategy=slda", "seed=1,2", "jobs=2"],
    "the processes differ in strategy.head.shrinkage: 0.01 on rank 0, 0.11 on rank 1":
        ["run", "strategy=slda", "strategy.head.shrinkage=0.{rank}1"],
    "keeps what depends on the order of samples (head.rank)": ["run", "strategy=loranpac"],
    "keeps what depends on the order of samples (head.streaming)":
        ["run", "strategy=slda", "strategy.head.streaming=true", "strategy.eval_mb_size=64"],
    "runs of kind 'reconnaissance' are not distributed":
        ["reconnaissance", "reconnaissance=digits"],
    "a mini-batch of one sample": ["run", "strategy=slda", "strategy.first_experience_epochs=1",
        "backbone=conv4", "benchmark.class_order=[0,1,2,3,4,5]", f"strategy.train_mb_size={LEFT}"],
    "protocl stream is not distributed": ["stream", "model", "nothing.tar"],
    "protocl list is not distributed": ["list", "heads"],
    "unknown key strategy.typo": ["run", "strategy=slda", "strategy.typo=1"],
}  # fmt: skip


@dataclass
class Ended:
    """What the processes left.

    Attributes:
        root: folder of all.
        codes: exit codes of the first process, by command.
        said: standard error of each process.
    """

    root: Path
    codes: list[int]
    said: list[str]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several é")
    draw = np.random.default_rng(0)
    labels = {part: draw.integers(0, 6, n) for part, n in (("train", TRAIN), ("test", TEST))}
    means = draw.normal(size=(6, 1, 8, 8)) * 40 + 128
    arrays = {f"y_{part}": y for part, y in labels.items()}
    for part, y in labels.items():
        noisy = means[y] + draw.normal(size=(len(y), 1, 8, 8)) * 40
        arrays[f"x_{part}"] = np.clip(noisy, 0, 255).astype(np.uint8)
    np.savez(folder / "toy.npz", **arrays)
    one_each = [int(np.flatnonzero(labels["train"] == y)[0]) for y in range(6)]
    few = {key: value[one_each] if "train" in key else value for key, value in arrays.items()}
    np.savez(folder / "few.npz", **few)
    return folder


def settings(root: Path, output: str, *more: str) -> list[str]:
    """Of a run on all samples, or on one of each class, and so of fewer than processes."""
    data, experiences = ("few", 6) if output.endswith("few") else ("toy", 3)
    return [
        "benchmark=npz", f"benchmark.path={root / data}.npz",
        f"benchmark.n_experiences={experiences}",
        "device=cpu", f"output={root / output}", *more,
    ]  # fmt: skip


def run(root: Path, output: str, *more: str) -> list[str]:
    backbone = [] if any(m.startswith("backbone=") for m in more) else ["backbone=conv4"]
    return [
        "run",
        *settings(root, output, f"cache={root / 'cache'}-{output[:3]}", *backbone, *more),
    ]


def pretrain(root: Path, output: str) -> list[str]:
    return [
        "pretrain",
        *settings(root, output, *PRETRAINED)[0:2],
        *settings(root, output, *PRETRAINED)[3:],
    ]


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens at, each another one."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def ended(root: Path) -> Ended:
    """All commands, one after the other, in the same two processes."""
    commands = [["", *run(root, f"two-{name}", *more)] for name, more in RUNS.items()]
    commands.append(["", *run(root, "two-slda", *RUNS["slda"], "resume=true")])
    commands.append(["", *run(root, "two-adapted", *ADAPTED)])
    commands.append(["", *pretrain(root, "two-pretrained")])
    for command in REFUSED.values():
        own = command[0] in ("federate", "reconnaissance", "stream", "list")
        given = command[1:] if own else settings(root, "refused", *command[1:])
        commands.append(["", command[0], *given])
    commands.append(["killed", *run(root, "killed", *RUNS["slda"])])
    environment = {
        **os.environ, "MASTER_ADDR": "localhost", "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(RANKS), "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.runner.together.ranks"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(RANKS)
    ]  # fmt: skip
    told = json.dumps(list(zip(free_ports(len(commands)), commands, strict=True)))
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(told)
        process.stdin.close()
        process.stdin = None
    try:
        answers = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert "CODES" in answers[0][0], answers[0][1]
    assert not answers[1][0], "only the first process prints"
    codes = json.loads(answers[0][0].rpartition("CODES ")[2])
    assert processes[1].returncode == 9
    return Ended(root, codes, [answer[1] for answer in answers])


def folder_of(root: Path, output: str) -> Path:
    (file,) = (root / output).glob("*/*/result.json")
    return file.parent


def result_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    assert result["status"] == "complete"
    kept = ("benchmark", "strategy", "backbone", "metrics", "confusion", "name", "seed")
    return {key: result[key] for key in kept}


def model_hashes(folder: Path) -> dict[str, str]:
    files = sorted((folder / "model").iterdir())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", RUNS)
def test_several_processes_give_what_one_gives(ended: Ended, name: str) -> None:
    assert ended.codes[list(RUNS).index(name)] == 0
    assert main(run(ended.root, f"one-{name}", *RUNS[name])) == 0
    one, two = (folder_of(ended.root, f"{n}-{name}") for n in ("one", "two"))
    if name == "floating":
        assert (
            result_of(two)["metrics"]["accuracy_matrix"]
            == result_of(one)["metrics"]["accuracy_matrix"]
        )
        return
    assert result_of(two) == result_of(one)
    assert model_hashes(two) == model_hashes(one)


def test_one_folder_is_written_by_the_first_and_found_again(ended: Ended) -> None:
    folder = folder_of(ended.root, "two-slda")
    assert ended.codes[len(RUNS)] == 0
    assert "finished before" in ended.said[0]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert json.loads((folder / "result.json").read_text())["machine"]["processes"] == RANKS
    assert len(list(folder.glob("events.out*"))) <= 1
    files = list(ended.root.glob("cache-two/*/*.safetensors"))
    assert files
    assert {f.name for f in files} >= {f.name for f in ended.root.glob("cache-one/*/*.safetensors")}


def test_the_first_session_and_pretraining_share_every_batch(ended: Ended) -> None:
    """Without BatchNorm the weights are those of one process, up to rounding."""
    assert ended.codes[len(RUNS) + 1 : len(RUNS) + 3] == [0, 0]
    assert main(run(ended.root, "one-adapted", *ADAPTED)) == 0
    assert main(pretrain(ended.root, "one-pretrained")) == 0
    for name, file in (("adapted", "model/backbone.safetensors"), ("pretrained", WEIGHTS_FILE)):
        one, two = (load_file(folder_of(ended.root, f"{n}-{name}") / file) for n in ("one", "two"))
        assert one.keys() == two.keys()
        for key, weight in one.items():
            torch.testing.assert_close(two[key], weight, rtol=1e-3, atol=1e-5, msg=key)
    last = [
        result_of(folder_of(ended.root, f"{n}-adapted"))["metrics"]["accuracy_matrix"][-1]
        for n in ("one", "two")
    ]
    np.testing.assert_allclose(*last, atol=0.02)


def test_what_is_not_distributed_is_refused_in_one_sentence(ended: Ended) -> None:
    codes = ended.codes[len(RUNS) + 3 : len(RUNS) + 3 + len(REFUSED)]
    assert codes == [2] * len(REFUSED)
    for sentence in REFUSED:
        assert ended.said[0].count(sentence) == 1
        assert sentence not in ended.said[1]


def test_a_process_that_is_gone_ends_the_others_and_the_run_goes_on(ended: Ended) -> None:
    assert ended.codes[-1] == 1
    assert "another process of the group ended" in ended.said[0]
    assert "resume=true continues the run" in ended.said[0]
    folder = folder_of(ended.root, "killed")
    assert json.loads((folder / "result.json").read_text())["status"] == "running"
    assert main(run(ended.root, "killed", *RUNS["slda"], "resume=true")) == 0
    assert result_of(folder) == result_of(folder_of(ended.root, "two-slda"))
    assert model_hashes(folder) == model_hashes(folder_of(ended.root, "two-slda"))
