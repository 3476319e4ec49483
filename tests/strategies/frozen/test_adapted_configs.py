"""Adaptation from the command line: the grid, APER's settings, interruption, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from protocl import PrototypeMemory
from protocl.cli.main import main
from protocl.config import ExperimentConfig
from protocl.config.compose import load
from protocl.errors import ConfigError
from protocl.runner.adapted_cache import AdaptedBackbones
from protocl.runner.experiment import run_experiment
from protocl.runner.folders import open_run, read_result
from protocl.runner.progress import Progress
from protocl.strategies import Session

pytest.importorskip("timm")

SMALL = (
    "benchmark=digits",
    "benchmark.n_experiences=2",
    "benchmark.classes=4",
    "benchmark.train_per_class=20",
    "benchmark.test_per_class=10",
    "device=cpu",
)
TRAINING = ("strategy.first_experience_epochs=1", "strategy.lr=0.05", "strategy.train_mb_size=20")
VIT = ("backbone=vit", "backbone.width=64")
CONV = ("backbone=conv4", "backbone.width=8")


def configure(output: Path, *settings: str) -> ExperimentConfig:
    (config,) = load([*SMALL, *settings, f"output={output}", f"cache={output / 'cache'}"])
    return config


def run(output: Path, *settings: str) -> tuple[dict[str, Any], Path]:
    config = configure(output, *settings)
    folder = open_run(config)
    return run_experiment(config, folder), folder


def results(output: Path) -> list[dict[str, Any]]:
    found = [read_result(file.parent) for file in sorted(output.rglob("result.json"))]
    return [result for result in found if result is not None]


@pytest.mark.parametrize(
    ("backbone", "heads", "adaptations"),
    [
        (VIT, "simplecil,ranpac", "none,adapter"),
        (CONV, "slda,fecam", "none,bn"),
        pytest.param(
            VIT,
            "nearest_mean,slda,fecam_vit,ranpac",
            "none,finetune,vpt_shallow,vpt_deep,ssf,adapter",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            CONV, "nearest_mean,slda,fecam,ranpac", "none,finetune,bn", marks=pytest.mark.slow
        ),
    ],
)
def test_one_command_sweeps_adaptations_and_heads(
    backbone: tuple[str, ...], heads: str, adaptations: str, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    sweep = [f"strategy={heads}", f"strategy.session.adapt={adaptations}"]
    where = [f"output={tmp_path}", f"cache={tmp_path / 'cache'}"]
    assert main(["run", *SMALL, *backbone, *TRAINING, *sweep, *where]) == 0
    torch.set_num_threads(threads)
    found = results(tmp_path)
    assert len(found) == len(heads.split(",")) * len(adaptations.split(","))
    assert all(result["status"] == "complete" for result in found)
    prints = {result["backbone"]["fingerprint"] for result in found}
    # One seed, one backbone for each adaptation, whatever the head.
    assert len(prints) == len(adaptations.split(","))


def test_aper_has_the_settings_of_its_authors(tmp_path: Path) -> None:
    config: Any = configure(tmp_path, *VIT, "strategy=aper").strategy
    assert config.session == Session("adapter", classifier="cosine", two_branches=True)
    assert (config.first_experience_epochs, config.train_mb_size) == (20, 48)
    assert (config.optimizer, config.lr, config.momentum) == ("sgd", 0.01, 0.9)
    assert (config.weight_decay, config.cosine_schedule) == (5e-4, True)


def test_a_run_of_aper_keeps_both_branches(tmp_path: Path) -> None:
    settings = (*VIT, "strategy=aper", *TRAINING)
    result, folder = run(tmp_path, *settings)
    assert result["backbone"]["feature_dim"] == 128
    memory = PrototypeMemory.load(folder / "model" / "memory.safetensors")
    assert memory.feature_dim == 128
    assert memory.fingerprint == result["backbone"]["fingerprint"]
    weights = load_file(folder / "model" / "backbone.safetensors")
    assert {name.split(".")[1] for name in weights} == {"pretrained", "adapted"}
    assert result["strategy"]["old_prototypes"] == "exact"
    assert result["metrics"]["accuracy_matrix"][0][0] > 0.6


class InterruptedRunError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    "settings",
    [
        (*VIT, "strategy=aper"),
        (*VIT, "strategy=slda", "strategy.session.adapt=ssf"),
        (*CONV, "strategy=fecam", "strategy.session.adapt=bn"),
    ],
)
@pytest.mark.parametrize("experience", [0, 1])
def test_an_interrupted_run_ends_with_the_same_numbers(
    settings: tuple[str, ...], experience: int, tmp_path: Path
) -> None:
    def stop(progress: Progress) -> None:
        if progress.phase == "eval" and progress.done == experience:
            raise InterruptedRunError

    undisturbed, first = run(tmp_path / "a", *settings, *TRAINING)
    config = configure(tmp_path / "b", *settings, *TRAINING, "resume=true")
    folder = open_run(config)
    with pytest.raises(InterruptedRunError):
        run_experiment(config, folder, on_progress=stop)
    assert open_run(config) == folder
    resumed = run_experiment(config, folder)
    for part in ("metrics", "confusion", "backbone"):
        assert resumed[part] == undisturbed[part]
    assert not (folder / "checkpoint").exists()
    one, other = (load_file(path / "model" / "backbone.safetensors") for path in (first, folder))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_images_are_encoded_once_as_soon_as_the_backbone_stays(tmp_path: Path) -> None:
    for settings, place in (
        (("strategy.session.adapt=none",), 1),
        (("strategy.session.adapt=ssf", *TRAINING), 2),
    ):
        result, _ = run(tmp_path, *VIT, "strategy=slda", *settings)
        phases = [phase["phase"] for phase in result["phases"]]
        assert phases.count("features") == 1
        assert phases.index("features") == place, phases


def files_of(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.suffix in (".safetensors", ".ckpt"))


def test_an_adaptation_and_its_features_serve_every_head(tmp_path: Path) -> None:
    settings = (*VIT, "strategy.session.adapt=ssf", *TRAINING)
    first, _ = run(tmp_path, *settings, "strategy=slda")
    files = files_of(tmp_path / "cache")
    seen: list[Progress] = []
    config = configure(tmp_path, *settings, "strategy=simplecil")
    second = run_experiment(config, open_run(config), on_progress=seen.append)
    assert first["backbone"] == second["backbone"]
    assert files_of(tmp_path / "cache") == files
    assert not [progress for progress in seen if progress.epoch is not None]


@pytest.mark.parametrize("strategy", ["ranpac", "fetril", "aper", "fecam_vit"])
def test_what_is_found_gives_the_numbers_of_what_is_trained(strategy: str, tmp_path: Path) -> None:
    settings = (*VIT, f"strategy={strategy}", "strategy.session.adapt=adapter", *TRAINING)
    trained, _ = run(tmp_path, *settings)
    found, _ = run(tmp_path, *settings)
    for part in ("metrics", "confusion", "backbone"):
        assert found[part] == trained[part]


def test_a_damaged_adaptation_is_trained_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = (*VIT, "strategy=slda", "strategy.session.adapt=ssf", *TRAINING)
    trained, _ = run(tmp_path, *settings)
    (file,) = (tmp_path / "cache" / "adapted").glob("*.ckpt")
    file.write_bytes(file.read_bytes()[:-1])
    again, _ = run(tmp_path, *settings)
    assert again["metrics"] == trained["metrics"]
    assert "is damaged" in caplog.text


@pytest.mark.parametrize(
    "change",
    ["seed=9", "strategy.lr=0.04", "strategy.session.adapt=adapter", "benchmark.n_experiences=4"],
)
def test_another_adaptation_is_not_found(change: str, tmp_path: Path) -> None:
    cache, cpu = AdaptedBackbones(tmp_path), torch.device("cpu")
    settings = (*VIT, "strategy=slda", "strategy.session.adapt=ssf", *TRAINING)
    path = cache.path(configure(tmp_path, *settings), "backbone", "data", cpu)
    assert cache.path(configure(tmp_path, *settings), "backbone", "data", cpu) == path
    assert cache.path(configure(tmp_path, *settings, change), "backbone", "data", cpu) != path
    assert cache.path(configure(tmp_path, *settings), "other", "data", cpu) != path


@pytest.mark.parametrize(
    ("backbone", "adapt"),
    [
        (VIT, "vpt_shallow"),
        (VIT, "ssf"),
        (VIT, "adapter"),
        (VIT, "lora:rank=2:alpha=4"),
        (CONV, "finetune"),
        (CONV, "bn"),
    ],
)
def test_one_adaptation_serves_all_heads(
    backbone: tuple[str, ...], adapt: str, tmp_path: Path
) -> None:
    first, folder = run(
        tmp_path, *backbone, "strategy=slda", f"strategy.session.adapt={adapt}", *TRAINING
    )
    again = (*backbone, f"backbone.checkpoint={folder}",
             f"backbone.adapted={adapt}")  # fmt: skip
    frozen, other = run(tmp_path, *again, "strategy=slda", "name=frozen")
    assert frozen["backbone"] == first["backbone"]
    assert "features" in {phase["phase"] for phase in frozen["phases"]}
    one, two = (
        PrototypeMemory.load(path / "model" / "memory.safetensors") for path in (folder, other)
    )
    torch.testing.assert_close(two.means, one.means, rtol=1e-4, atol=1e-5)
    assert (one + two).total == 2 * one.total  # of one backbone, so that they merge


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((*VIT, "backbone.adapted=ssf", "strategy=slda"), "ssf says what is in a file of weights"),
        (
            (*VIT, "strategy=slda", "strategy.session.adapt=ssf"),
            "expected 0 or more, and at least 1",
        ),
        (
            (*CONV, "strategy=slda", "strategy.session.adapt=finetune"),
            "at least 1 with adapt=finetune",
        ),
        ((*CONV, "strategy=aper"), r"adapt=adapter .*backbone conv4.*choose from bn, finetune"),
        (
            (*VIT, "strategy=aper", "strategy.session.adapt=bn"),
            "choose from adapter, finetune, lora, none, ssf",
        ),
        ((*VIT, "strategy=aper", "strategy.session.adapt=dora"), "unknown adaptation 'dora'"),
        (
            (*VIT, "strategy=aper", "strategy.session.classifier=cos"),
            "session.classifier=cos: expected linear or cosine",
        ),
        ((*VIT, "strategy=aper", "strategy.session.adopt=ssf"), "strategy.session.adapt"),
    ],
)
def test_mistakes_are_named(settings: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, *settings)
