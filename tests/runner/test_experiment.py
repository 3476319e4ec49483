"""One experiment: what it computes, what it writes, what it refuses."""

from __future__ import annotations

import itertools
import json
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from protocl import PrototypeMemory
from protocl.config import ExperimentConfig
from protocl.config.compose import load
from protocl.data import load_data
from protocl.errors import ConfigError, DataError
from protocl.io import provenance
from protocl.io.profile import PhaseLog
from protocl.report import load_run
from protocl.report.result import RESULT_FILE
from protocl.runner.context import resolve_device
from protocl.runner.experiment import EXPERIMENT, run_experiment
from protocl.runner.folders import (
    create_run,
    discard_if_empty,
    exclusive,
    find_run,
    open_run,
    read_result,
)
from protocl.runner.progress import Progress
from tests import third_party
from tests.io.test_atomic import die_while_writing


@pytest.fixture(scope="module", autouse=True)
def _acme(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("site")
    third_party.install(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


SMALL_IMAGES = (
    "benchmark.n_experiences=2",
    "benchmark.classes=4",
    "benchmark.train_per_class=20",
    "backbone=conv4",
    "backbone.width=4",
    "backbone.image_size=16",
    "strategy=naive",
    "strategy.train_epochs=1",
)


def configure(output: Path, *arguments: str) -> ExperimentConfig:
    (config,) = load([f"output={output}", f"cache={output / 'cache'}", "device=cpu", *arguments])
    return config


def run(output: Path, *arguments: str) -> tuple[dict[str, Any], Path]:
    config = configure(output, *arguments)
    folder = open_run(config)
    return run_experiment(config, folder), folder


def numbers(result: dict[str, Any]) -> tuple[Any, ...]:
    return result["metrics"], result["confusion"], result["benchmark"], result["backbone"]


class InterruptedRunError(Exception):
    """Stands for the end of the process."""


def interrupt_at(phase: str, index: int) -> Any:
    """A progress callback that stops the run when ``phase`` of experience ``index`` begins."""

    def callback(progress: Progress) -> None:
        if progress.phase == phase and progress.done == index:
            raise InterruptedRunError

    return callback


@pytest.fixture(scope="module")
def slda(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    return run(tmp_path_factory.mktemp("slda"), "strategy=slda", "seed=4")


class TestResult:
    def test_the_file_holds_what_is_returned_and_the_report_accepts_it(self, slda: Any):
        result, folder = slda
        assert read_result(folder) == result
        assert load_run(folder).complete

    def test_every_test_sample_is_counted_once(self, slda: Any):
        result, _ = slda
        counts = np.array(result["confusion"]["counts"])
        assert counts.sum() == result["benchmark"]["n_test"] == 450
        last = result["metrics"]["last_accuracy"]
        assert math.isclose(np.trace(counts) / counts.sum(), last, abs_tol=1e-12)

    def test_it_says_what_was_run(self, slda: Any):
        result, folder = slda
        data = load_data(EXPERIMENT.from_yaml((folder / "config.yaml").read_text()).benchmark)
        assert result["status"] == "complete"
        assert result["seed"] == 4
        assert result["benchmark"]["data_hash"] == data.content_hash
        classes = itertools.chain(*result["benchmark"]["classes_per_experience"])
        assert sorted(classes) == list(range(10))
        assert result["strategy"]["keeps_data"] is False
        assert result["versions"] == provenance.versions()
        assert result["machine"]["device"] == "cpu"

    def test_each_phase_has_time_and_memory(self, slda: Any):
        result, _ = slda
        phases = [(p["phase"], p["experience"]) for p in result["phases"]]
        learning = [(name, t) for t in range(5) for name in ("train", "eval")]
        assert phases == [("data", None), *learning]
        assert all(p["seconds"] > 0 and p["peak_mib"] > 1 for p in result["phases"])

    def test_the_memory_holds_all_training_samples(self, slda: Any):
        result, folder = slda
        memory = PrototypeMemory.load(folder / "model" / "memory.safetensors")
        assert memory.total == result["benchmark"]["n_train"] == 1347
        assert memory.fingerprint == result["backbone"]["fingerprint"]
        assert memory.nbytes == result["strategy"]["state_bytes"]

    def test_no_checkpoint_is_left(self, slda: Any):
        _, folder = slda
        assert not (folder / "checkpoint").exists()

    @pytest.mark.plots
    def test_plots_are_drawn(self, tmp_path: Path):
        _, folder = run(tmp_path, "strategy=nearest_mean", "benchmark.train_per_class=5")
        assert {file.suffix for file in (folder / "plots").iterdir()} == {".png"}

    def test_the_curves_of_the_result_are_in_tensorboard(self, slda: Any):
        result, folder = slda
        ours = [np.float32(value) for value in result["metrics"]["stream_accuracy"]]
        events = EventAccumulator(str(folder)).Reload()
        (stream,) = [t for t in events.Tags()["scalars"] if t.startswith("Top1_Acc_Stream")]
        assert [event.value for event in events.Scalars(stream)] == ours
        curve = events.Scalars("stream_accuracy")
        assert [(event.step, event.value) for event in curve] == list(enumerate(ours))


def test_the_seed_decides_all(tmp_path: Path):
    settings = ["strategy=acme_replay", "benchmark.n_experiences=2"]
    first, _ = run(tmp_path, *settings, "seed=1")
    torch.rand(3)
    again, _ = run(tmp_path, *settings, "seed=1")
    other, _ = run(tmp_path, *settings, "seed=2")
    assert numbers(first) == numbers(again)
    assert numbers(first) != numbers(other)


def test_a_frozen_backbone_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = ["strategy=nearest_mean", "backbone=conv4", "backbone.width=4"]
    first, _ = run(tmp_path, *settings)
    from protocl.backbones import Backbone

    def fail(self: Backbone, x: torch.Tensor) -> torch.Tensor:
        assert self.architecture == "identity", "the backbone was run again"
        return x.flatten(1)

    monkeypatch.setattr(Backbone, "forward", fail)
    again, _ = run(tmp_path, *settings)
    assert numbers(first) == numbers(again)
    assert "features" in {phase["phase"] for phase in again["phases"]}


def test_a_trained_backbone_is_kept_and_fits_another_run(tmp_path: Path):
    settings = ["backbone=conv4", "backbone.width=4", "benchmark.n_experiences=2"]
    trained, folder = run(tmp_path, "strategy=acme_replay", *settings)
    weights = folder / "model" / "backbone.safetensors"
    assert load_file(weights)
    reused, _ = run(tmp_path, "strategy=nearest_mean", *settings, f"backbone.checkpoint={weights}")
    assert reused["backbone"]["fingerprint"] == trained["backbone"]["fingerprint"]


class TestResume:
    settings = ("strategy=acme_replay", "strategy.train_epochs=1", "seed=3", "resume=true")

    @pytest.mark.parametrize(
        ("phase", "index"), [("train", 0), ("train", 1), ("eval", 2), ("report", 5)]
    )
    def test_numbers_are_those_of_an_undisturbed_run(self, tmp_path: Path, phase: str, index: int):
        config = configure(tmp_path / "disturbed", *self.settings)
        folder = open_run(config)
        with pytest.raises(InterruptedRunError):
            run_experiment(config, folder, on_progress=interrupt_at(phase, index))
        partial = read_result(folder)
        if index == 0:
            assert partial is None
        else:
            assert partial is not None
            assert partial["status"] == "running"
        assert open_run(config) == folder
        resumed = run_experiment(config, folder)
        quiet, _ = run(tmp_path / "quiet", *self.settings)
        assert numbers(resumed) == numbers(quiet)

    def test_a_damaged_checkpoint_costs_one_experience(self, tmp_path: Path, caplog: Any):
        config = configure(tmp_path / "disturbed", *self.settings)
        folder = open_run(config)
        with pytest.raises(InterruptedRunError):
            run_experiment(config, folder, on_progress=interrupt_at("train", 3))
        newest = max((folder / "checkpoint").iterdir())
        newest.write_bytes(newest.read_bytes()[:-100])
        seen: list[Progress] = []
        resumed = run_experiment(config, folder, on_progress=seen.append)
        assert "is damaged" in caplog.text
        first = next(p for p in seen if p.phase == "train")
        assert first.done == 2
        assert first.accuracy == resumed["metrics"]["stream_accuracy"][1]
        quiet, _ = run(tmp_path / "quiet", *self.settings)
        assert numbers(resumed) == numbers(quiet)

    def test_a_finished_run_is_left_as_it_is(self, tmp_path: Path):
        result, folder = run(tmp_path, *self.settings)
        before = (folder / "result.json").read_bytes()
        again, same = run(tmp_path, *self.settings)
        assert (again, same) == (result, folder)
        assert (folder / "result.json").read_bytes() == before

    def test_events_of_the_lost_experience_are_hidden(self, tmp_path: Path):
        config = configure(tmp_path, *self.settings)
        folder = open_run(config)
        with pytest.raises(InterruptedRunError):
            run_experiment(config, folder, on_progress=interrupt_at("eval", 2))
        run_experiment(config, folder)
        events = EventAccumulator(str(folder)).Reload()
        tags = [t for t in events.Tags()["scalars"] if t.startswith("Loss_Epoch/train")]
        assert len(tags) == 1
        assert len(events.Scalars(tags[0])) == 5
        assert {event.step for event in events.Scalars("stream_accuracy")} == {0, 1, 2, 3, 4}

    def test_other_settings_are_another_run(self, tmp_path: Path):
        folder = create_run(configure(tmp_path, *self.settings))
        assert find_run(configure(tmp_path, *self.settings, "jobs=2")) == folder
        assert find_run(configure(tmp_path, *self.settings, "strategy.lr=0.2")) is None
        newer = create_run(configure(tmp_path, *self.settings))
        assert newer != folder
        assert find_run(configure(tmp_path, *self.settings)) == newer

    def test_changed_data_or_versions_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        config = configure(tmp_path, *self.settings)
        folder = open_run(config)
        with pytest.raises(InterruptedRunError):
            run_experiment(config, folder, on_progress=interrupt_at("train", 1))
        with monkeypatch.context() as patch:
            newer = {**provenance.versions(), "torch": "9.9"}
            patch.setattr(provenance, "versions", lambda: newer)
            with pytest.raises(ConfigError, match="torch changed version"):
                run_experiment(config, folder)
        config.benchmark.test_per_class = 10
        with pytest.raises(DataError, match="the data of benchmark 'digits' changed"):
            run_experiment(config, folder)

    def test_what_was_half_written_when_a_run_was_killed_is_in_nobodys_way(self, tmp_path: Path):
        config = configure(tmp_path, *self.settings)
        folder = open_run(config)
        with pytest.raises(InterruptedRunError):
            run_experiment(config, folder, on_progress=interrupt_at("train", 1))
        die_while_writing(folder / "checkpoint" / "experience-00001.ckpt")
        die_while_writing(folder / "result.json")
        result = run_experiment(config, folder)
        assert result["status"] == "complete"
        assert not (folder / "checkpoint").exists()
        assert not list(folder.glob(".result*"))

    def test_two_processes_do_not_write_one_run(self, tmp_path: Path):
        config = configure(tmp_path, *self.settings)
        folder = create_run(config)
        with exclusive(folder), pytest.raises(ConfigError, match="in use by another process"):
            run_experiment(config, folder)

    def test_a_second_sweep_leaves_the_run_of_the_first_alone(self, tmp_path: Path):
        """It once removed the folder, as that of a run that failed before its first result."""
        config = configure(tmp_path, *self.settings)
        folder = create_run(config)
        with exclusive(folder):
            discard_if_empty(folder)
            assert find_run(config) == folder
        discard_if_empty(folder)
        assert not folder.exists()


def test_a_strategys_complaint_becomes_a_configuration_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="strategy=acme_replay: mem_size is 0"):
        run(tmp_path, "strategy=acme_replay", "strategy.mem_size=0")


def test_a_mini_batch_of_one_sample_is_told_in_terms_of_its_setting(tmp_path: Path):
    words = ["strategy=naive", "backbone=conv4", "benchmark=digits", "benchmark.train_per_class=3"]
    with pytest.raises(ConfigError, match=r"one sample.*give another strategy\.train_mb_size"):
        run(tmp_path, *words, "strategy.train_mb_size=5")


@pytest.mark.parametrize("name", ["cuda:99", "toaster"])
def test_an_absent_device_is_named(name: str):
    with pytest.raises(ConfigError, match=f"device={name}: not available here"):
        resolve_device(name)


def test_auto_takes_what_there_is():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == expected


def test_a_phase_notices_its_own_peak():
    log = PhaseLog()
    # Not by the C library's allocator, which may have as much in reserve.
    with log.phase("data"), mmap.mmap(-1, 40 * 2**20) as fresh:
        fresh.write(bytes(40 * 2**20))
    with log.phase("train", 0):
        pass
    big, small = (entry["peak_mib"] for entry in log.entries)
    assert big - small > 30


def test_results_are_valid_json(slda: Any):
    _, folder = slda
    text = (folder / RESULT_FILE).read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in result.json"))


def test_augmentation_reaches_the_training_of_a_run(tmp_path: Path):
    plain, _ = run(tmp_path / "plain", *SMALL_IMAGES)
    moved, _ = run(tmp_path / "moved", *SMALL_IMAGES, "benchmark.augmentation=crop_flip")
    assert numbers(plain)[:2] != numbers(moved)[:2]


def test_augmentation_of_what_is_encoded_once_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"augmentation=full: strategy 'slda' leaves"):
        run(tmp_path, "strategy=slda", "benchmark.augmentation=full")
