"""A run without a host: bit for bit what an Avalanche strategy gives on the same settings."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from protocl.config import Setup
from protocl.config.compose import load
from protocl.data import ArrayData, BenchmarkConfig, class_stream
from protocl.errors import DivergedError
from protocl.io.checkpoint import CheckpointFolder
from protocl.runner.context import CHECKPOINTS, RunContext
from protocl.runner.experiment import EXPERIMENT
from protocl.runner.feature_run import FeatureRun
from protocl.runner.prepare import prepare
from protocl.runner.progress import Progress
from protocl.strategies.frozen.recipe import RecipeConfig
from protocl.strategies.slda import SLDAConfig

SMALL = ("benchmark.train_per_class=25", "benchmark.test_per_class=7", "seed=3")
STRATEGIES = {
    "nearest_mean": ("strategy=nearest_mean",),
    "normalised": ("strategy=nearest_mean", "strategy.head.normalize_input=true"),
    "simplecil": ("strategy=simplecil",),
    "slda": ("strategy=slda", "strategy.head.shrinkage=auto"),
    "fecam": ("strategy=fecam",),
    "ranpac": ("strategy=ranpac", "strategy.head.projection=70"),
    "frozen": ("strategy=frozen",),
    "bayesian": ("strategy=frozen", "strategy.head=bayesian"),
    "exact": ("strategy=frozen", "strategy.head=ridge", "strategy.sums.exact=true"),
}
STREAMS = {
    "as it is": (),
    "held out": (
        "benchmark.validation=0.3", "benchmark.class_order=[8,0,3,9,1,5]",
        "benchmark.n_experiences=3", "strategy.eval_mb_size=11",
    ),
    "tasks": (
        "benchmark.task_labels=true", "benchmark.protocol=B4-Inc2", "strategy.eval_mb_size=64",
    ),
    "one": ("benchmark.classes=2", "benchmark.n_experiences=1", "strategy.eval_mb_size=1"),
}  # fmt: skip


class Stopped(Exception):  # noqa: N818 - no fault
    """Stands for a process that is killed."""


@dataclass
class Found:
    """All that a run leaves, apart from times."""

    result: dict[str, Any]
    memory: dict[str, str]
    curves: dict[str, list[tuple[int, float]]]
    progress: list[str]


def go(folder: Path, *settings: str, stop: str = "") -> Found:
    """Run in ``folder``; ``stop`` ends it at that progress as if it were killed."""
    folder.mkdir(exist_ok=True)
    (config,) = load([*SMALL, f"cache={folder.parent / 'cache'}", *settings])
    said: list[str] = []

    def listen(progress: Progress) -> None:
        said.append(str(progress))
        if stop and said[-1].startswith(stop):
            raise Stopped

    run = RunContext("experiment", config, folder, listen)
    result = EXPERIMENT.execute(run)
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    curves = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    with safe_open(folder / "model" / "memory.safetensors", framework="pt") as file:
        memory = file.metadata()  # with a checksum of all tensors
    assert "checksum" in memory
    return Found(result, memory, curves, said)


def through_avalanche(patch: pytest.MonkeyPatch, folder: Path, *settings: str) -> Found:
    with patch.context() as without:
        without.setattr(RecipeConfig, "learner", lambda self, setup: None)
        return go(folder, *settings)


@pytest.mark.parametrize(
    ("strategy", "stream"),
    [*((name, "held out") for name in STRATEGIES), *(("slda", name) for name in STREAMS)],
)
def test_both_ways_give_the_same(
    strategy: str, stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*STRATEGIES[strategy], *STREAMS[stream])
    ours = go(tmp_path / "ours", *settings)
    assert ours == through_avalanche(monkeypatch, tmp_path / "theirs", *settings)
    assert (
        len(ours.result["metrics"]["stream_accuracy"]) == ours.result["benchmark"]["n_experiences"]
    )


@pytest.mark.parametrize("backbone", ["mlp", "conv4"])
def test_on_the_features_of_a_network(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("strategy=slda", f"backbone={backbone}", "backbone.width=8")
    ours = go(tmp_path / "ours", *settings)
    assert ours == through_avalanche(monkeypatch, tmp_path / "theirs", *settings)
    assert ours.result["backbone"]["name"] == backbone


@pytest.mark.parametrize(
    ("strategy", "stop"),
    [("slda", "experience 2/5 eval"), ("ranpac", "experience 4/5 train"), ("fecam", "report")],
)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    strategy: str, stop: str, tmp_path: Path
) -> None:
    settings = STRATEGIES[strategy]
    whole = go(tmp_path / "whole", *settings)
    with pytest.raises(Stopped):
        go(tmp_path / "stopped", *settings, stop=stop)
    rest = go(tmp_path / "stopped", *settings)
    assert (rest.result, rest.memory) == (whole.result, whole.memory)
    assert rest.curves["stream_accuracy"] == whole.curves["stream_accuracy"]
    assert len(rest.progress) < len(whole.progress)


def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = go(tmp_path / "whole", "strategy=slda")
    with pytest.raises(Stopped):
        go(tmp_path / "stopped", "strategy=slda", stop="experience 4/5 train")
    newest = CheckpointFolder(tmp_path / "stopped" / CHECKPOINTS).files()[0]
    newest.write_bytes(newest.read_bytes()[:-40])
    rest = go(tmp_path / "stopped", "strategy=slda")
    assert (rest.result, rest.memory) == (whole.result, whole.memory)
    assert "damaged" in caplog.text


class OnlyBuilt(SLDAConfig):
    """Somebody's strategy that builds something else."""

    def build(self, setup: Setup) -> Any:
        raise NotImplementedError("built")


def test_a_strategy_that_builds_something_else_is_built(tmp_path: Path) -> None:
    (config,) = load([*SMALL, "strategy=slda"])
    config.strategy = OnlyBuilt()
    with pytest.raises(NotImplementedError, match="built"):
        EXPERIMENT.execute(RunContext("experiment", config, tmp_path))


@pytest.mark.parametrize("settings", [("strategy.first_experience_epochs=1",), ()])
def test_what_is_trained_goes_through_avalanche(settings: tuple[str, ...]) -> None:
    (config,) = load([*SMALL, "strategy=slda", *settings])
    setup = Setup(torch.nn.Identity(), 64, 10, torch.device("cpu"), 0, [], None)
    assert (config.strategy.learner(setup) is None) is bool(settings)


def test_answers_that_are_no_numbers_are_not_counted(tmp_path: Path) -> None:
    (config,) = load([*SMALL, "strategy=nearest_mean"])
    run = RunContext("experiment", config, tmp_path)
    prepared = prepare(run)
    prepared.model.backbone = torch.nn.Sequential(torch.nn.Flatten(), Broken())
    learner = config.strategy.learner(prepared.setup(run))
    assert learner is not None
    with pytest.raises((DivergedError, ValueError), match="finite"):
        FeatureRun(run, prepared, learner).finish()
    assert not (tmp_path / "result.json").exists()


class Broken(torch.nn.Module):
    """A network that overflowed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 0


@pytest.mark.parametrize(
    "settings",
    [
        {"n_experiences": 4, "task_labels": True, "class_order": [149, 8, 3, 1, 0, 42, 6, 77]},
        *({"increment": 10, "order_seed": seed} for seed in range(3)),
    ],
)
def test_the_stream_is_avalanches(settings: dict[str, Any]) -> None:
    """The same samples in the same order, also where a set of class ids is not in order."""
    y = torch.arange(900) % 150
    x = torch.arange(900.0)[:, None]
    data = ArrayData(x, y, x[:450] + 0.5, y[:450], [str(c) for c in range(150)], "toy")
    stream = class_stream(BenchmarkConfig(**settings), data, seed=0)
    benchmark = stream.benchmark()
    for t, (train, test) in enumerate(
        zip(benchmark.train_stream, benchmark.test_stream, strict=True)
    ):
        for samples, theirs in ((stream.train(t), train.dataset), (stream.test(t), test.dataset)):
            inputs, labels, tasks = zip(*samples.split(7), strict=True)
            assert torch.equal(torch.cat(inputs), torch.stack([sample[0] for sample in theirs]))
            assert torch.cat(labels).tolist() == list(theirs.targets)
            assert torch.cat(tasks).tolist() == list(theirs.targets_task_labels)
        assert stream.train(t).classes == list(train.classes_in_this_experience)


def test_what_a_frozen_run_imports(tmp_path: Path) -> None:
    script = (
        "import gc, sys, protocl.strategies\n"
        "assert not {'torch', 'avalanche'} & set(sys.modules)\n"
        "from protocl.cli.main import main\n"
        "words = ['run', 'benchmark=digits', 'strategy=slda', 'benchmark.train_per_class=5']\n"
        "assert main([*words, '--show']) == 0\n"
        "heavy = {'avalanche', 'torchvision', 'tensorboard', 'matplotlib', 'sklearn', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert main(words) == 0\n"
        "assert not {'avalanche', 'torchvision', 'wandb', 'flwr'} & set(sys.modules)\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 1e5  # modules are no garbage\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
