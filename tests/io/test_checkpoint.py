"""Stop and resume: checkpoints are whole, verified, small, and continue bit for bit."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint
from avalanche.training import EWC, Naive, Replay
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from protocl.data import ArrayData, BenchmarkConfig, build_benchmark, load_data
from protocl.errors import ConfigError, DataError
from protocl.io import checkpoint
from protocl.io.checkpoint import CheckpointFolder, classes_by_reference
from tests import third_party

EARLIER = Path(__file__).parents[1] / "golden" / "results_v1" / "experiment-00001.ckpt"


class TestFile:
    def test_objects_come_back_and_shared_ones_are_the_readers(self, tmp_path: Path):
        data, other = torch.arange(10_000), torch.arange(10_000)
        state = {"model": nn.Linear(2, 3), "view": [data, data], "text": "x"}
        file = tmp_path / "a" / "state.ckpt"
        checkpoint.save(file, state, {"data": data})
        assert file.stat().st_size < 5_000
        loaded = checkpoint.load(file, {"data": other})
        assert loaded["view"][0] is other
        assert loaded["view"][1] is other
        assert torch.equal(loaded["model"].weight, state["model"].weight)

    def test_a_missing_shared_object_is_named(self, tmp_path: Path):
        data = torch.arange(3)
        checkpoint.save(tmp_path / "s", {"x": data}, {"train_data": data})
        with pytest.raises(DataError, match="needs the shared object 'train_data'"):
            checkpoint.load(tmp_path / "s")

    def test_an_absent_accelerator_is_replaced_and_the_cpu_stays(self, tmp_path: Path):
        state = {"on": torch.device("cuda:1"), "at": torch.device("cpu"), "rng": torch.arange(3)}
        checkpoint.save(tmp_path / "s", state)
        assert checkpoint.load(tmp_path / "s")["on"] == torch.device("cuda:1")
        moved = checkpoint.load(tmp_path / "s", device="meta")
        assert (moved["on"], moved["at"]) == (torch.device("meta"), torch.device("cpu"))
        assert moved["rng"].device.type == "cpu"

    @pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
    def test_damage_is_noticed(self, tmp_path: Path, damage: str):
        file = tmp_path / "state.ckpt"
        checkpoint.save(file, {"x": torch.arange(100)})
        content = bytearray(file.read_bytes())
        if damage == "cut":
            content = content[: len(content) // 2]
        elif damage == "empty":
            content = bytearray()
        else:
            content[len(content) // 2] ^= 1
        file.write_bytes(content)
        with pytest.raises(DataError, match="is damaged"):
            checkpoint.load(file)

    def test_one_of_an_earlier_protocl_is_refused_in_a_sentence(self, tmp_path: Path):
        (tmp_path / "experience-00001.ckpt").write_bytes(EARLIER.read_bytes())
        with pytest.raises(
            ConfigError, match=r"not of format 4, .* protocl 0.* start anew without"
        ):
            CheckpointFolder(tmp_path).load_newest({})

    def test_the_last_two_are_kept_and_a_damaged_one_is_passed_over(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        folder = CheckpointFolder(tmp_path / "checkpoint")
        assert folder.load_newest({}) is None
        for t in range(12):
            folder.save(t, {"t": t}, {})
        assert [file.name for file in folder.files()] == [
            "experience-00011.ckpt",
            "experience-00010.ckpt",
        ]
        folder.files()[0].write_bytes(b"cut")
        assert folder.load_newest({}) == {"t": 10}
        assert "experience-00011.ckpt is damaged" in caplog.text


def digits_stream() -> Any:
    config = BenchmarkConfig()
    data: ArrayData = load_data(config)
    return build_benchmark(config, data, 0)


def build(kind: type, **settings: Any) -> Any:
    RNGManager.set_random_seeds(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    return kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32,
        evaluator=EvaluationPlugin(loggers=[]),
        **settings,
    )


def weights(strategy: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in strategy.model.parameters()])


UNPICKLABLE = re.compile("sentinel|PyCapsule|pickle")


class TestAvalanchesOwnSaveCheckpoint:
    def test_fails_alone_and_works_inside_the_block(self, tmp_path: Path):
        stream = digits_stream().train_stream
        strategy = build(Replay, mem_size=50)
        strategy.train(stream[0])
        with pytest.raises(Exception, match=UNPICKLABLE):
            save_checkpoint(strategy, tmp_path / "alone.pth")
        with classes_by_reference():
            save_checkpoint(strategy, tmp_path / "inside.pth")
        with pytest.raises(Exception, match=UNPICKLABLE):
            save_checkpoint(strategy, tmp_path / "after.pth")
        strategy.train(stream[1])
        with redirect_stdout(io.StringIO()):
            resumed, done = maybe_load_checkpoint(
                build(Replay, mem_size=50), tmp_path / "inside.pth"
            )
        assert done == 1
        resumed.train(stream[1])
        assert torch.equal(weights(resumed), weights(strategy))


@pytest.mark.parametrize(
    ("kind", "settings"), [(Naive, {}), (Replay, {"mem_size": 50}), (EWC, {"ewc_lambda": 0.5})]
)
def test_a_strategy_continues_bit_for_bit(tmp_path: Path, kind: type, settings: dict[str, Any]):
    benchmark = digits_stream()
    shared = {"benchmark": benchmark, "train": benchmark.original_train_dataset}
    strategy = build(kind, **settings)
    strategy.train(benchmark.train_stream[0])
    state = {"strategy": strategy, "random": RNGManager.__getstate__()}
    checkpoint.save(tmp_path / "s", state, shared)
    strategy.train(benchmark.train_stream[1])
    RNGManager.set_random_seeds(99)
    resumed = checkpoint.load(tmp_path / "s", shared)
    RNGManager.__setstate__(resumed["random"])
    resumed["strategy"].train(benchmark.train_stream[1])
    assert torch.equal(weights(resumed["strategy"]), weights(strategy))


# --- real processes, really killed -----------------------------------------------------------


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Starts processes that have Avalanche imported already: each is forked from a clean server."""
    site = tmp_path_factory.mktemp("site")
    third_party.install(site)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.setenv("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["avalanche.training", "protocl.runner.experiment"])
        yield context


def command(arguments: list[str], site_packages: list[str], log: Path) -> None:
    """Be ``protocl run ...``, with the output in ``log``."""
    import sys

    from protocl.cli.main import main

    sys.path.extend(site_packages)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.exit(main(["run", *arguments]))


def start(context: Any, arguments: list[str], log: Path) -> Any:
    site = os.environ["PYTHONPATH"].split(os.pathsep)[:1]
    process = context.Process(target=command, args=(arguments, site, log))
    process.start()
    return process


def numbers(folder: Path) -> tuple[Any, ...]:
    (run,) = folder.glob("*/*/result.json")
    result = json.loads(run.read_text())
    assert result["status"] == "complete"
    files = {file.name: file.read_bytes() for file in run.parent.glob("*.safetensors")}
    return result["metrics"], result["confusion"], result["benchmark"], files


def progress(folder: Path) -> int:
    """Experiences that the newest checkpoint holds."""
    files = [int(file.stem.split("-")[1]) for file in folder.glob("*/*/checkpoint/*.ckpt")]
    return max(files, default=-1) + 1


def kill_later(process: Any, folder: Path, moments: random.Random) -> bool:
    """SIGKILL the process a moment after it writes its next checkpoint; False if it was done."""
    before = progress(folder)
    while progress(folder) == before and process.is_alive():
        time.sleep(0.001)
    process.join(moments.choice([0.0, 0.01, 0.03, 0.1]) * moments.random())
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def check_killed_runs(context: Any, tmp_path: Path, settings: list[str], kills: int, seed: int):
    """Kill a run again and again, let it finish, and compare it with an undisturbed one.

    Kills come at a random moment: at times before anything was written, at times after a
    checkpoint, in the midst of training, evaluation or writing.
    """
    common = [*settings, "seed=5", "device=cpu", "resume=true"]
    began = time.monotonic()
    log = tmp_path / "log"
    quiet = start(context, [*common, f"output={tmp_path / 'quiet'}"], log)
    quiet.join(120)
    assert quiet.exitcode == 0, log.read_text()
    duration = time.monotonic() - began

    moments = random.Random(seed)
    folder = tmp_path / "disturbed"
    disturbed = [*common, f"output={folder}"]
    continued = False
    for kill in range(kills):
        process = start(context, disturbed, log)
        if kill % 2 == 0:
            continued |= kill_later(process, folder, moments)
        else:
            process.join(moments.random() * duration)
            process.kill()
            process.join()
    last = start(context, disturbed, log)
    last.join(120)
    assert last.exitcode == 0, log.read_text()
    assert continued, "no kill hit a run that had a checkpoint"
    assert numbers(folder) == numbers(tmp_path / "quiet")


CONV = ["backbone=conv4", "backbone.width=4", "strategy.train_epochs=1"]
KILLED = [
    ["strategy=slda"],
    ["strategy=acme_replay", "strategy.train_epochs=12"],
]
KILLED_OFTEN = [
    ["strategy=nearest_mean", "backbone=conv4", "backbone.width=4"],
    ["strategy=fecam", "strategy.first_experience_epochs=2", *CONV],
    ["strategy=ranpac", "strategy.head.projection=400"],
    *(
        [f"strategy={name}", *CONV]
        for name in ("naive", "lwf", "ewc", "cumulative", "joint", "replay")
    ),
    # Avalanche's iCaRL divides by the norm of a class's mean, which is 0 where all four are dead.
    ["strategy=icarl", *CONV, "backbone.width=16"],
]


def name_of(settings: list[str]) -> str:
    return "-".join(settings[:2])


@pytest.mark.parametrize("settings", KILLED, ids=name_of)
def test_a_run_killed_twice_ends_with_the_same_numbers(
    processes: Any, tmp_path: Path, settings: list[str]
):
    check_killed_runs(processes, tmp_path, settings, kills=2, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("settings", KILLED_OFTEN, ids=name_of)
def test_a_run_killed_often_ends_with_the_same_numbers(
    processes: Any, tmp_path: Path, settings: list[str], seed: int
):
    check_killed_runs(processes, tmp_path, settings, kills=6, seed=seed)
