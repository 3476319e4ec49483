"""The batch size is measured once where that pays, is kept, and never changes an exact run."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from protocl.backbones import batch_size
from protocl.backbones.batch_size import is_worth_measuring, quickest_batch_size
from protocl.backbones.features import FeatureCache, extract
from protocl.config.compose import load
from protocl.runner.context import RunContext
from protocl.runner.experiment import run_experiment
from protocl.runner.folders import kept_setting, open_run
from protocl.runner.prepare import prepare
from tests.backbones.test_features import Counting, files, pictures

CPU = torch.device("cpu")


class Clock:
    """A time of its own, which samples and passes take as they are told to."""

    def __init__(self, a_pass: float, a_sample: float) -> None:
        self.now, self.a_pass, self.a_sample = 0.0, a_pass, a_sample
        self.passes: list[int] = []

    def encode(self, batch: Tensor) -> None:
        self.passes.append(len(batch))
        self.now += self.a_pass + self.a_sample * len(batch) ** 2

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("a_pass", "a_sample", "best"),
    [(50.0, 1.0, 7), (200.0, 1.0, 14), (1000.0, 1.0, 28), (1e4, 1e-3, 56), (1.0, 1e-9, 56)],
)
def test_the_quickest_size_is_found(
    a_pass: float, a_sample: float, best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(a_pass, a_sample)
    monkeypatch.setattr(batch_size, "time", clock)
    assert quickest_batch_size(clock.encode, torch.zeros(500, 1), 28) == best
    assert sum(clock.passes) == 28 + 2 * 4 * 56  # what the share of the whole pass is reckoned by


def test_the_rule_stays_where_others_are_hardly_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(300.0, 1.0)  # 14 takes 8 % less time than 28
    monkeypatch.setattr(batch_size, "time", clock)
    assert quickest_batch_size(clock.encode, torch.zeros(500, 1), 28) == 28


def test_one_image_at_a_time_and_few_images_are_not_measured() -> None:
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert is_worth_measuring(15_000, images, 28, CPU)
    assert not is_worth_measuring(4_000, images, 28, CPU)
    assert not is_worth_measuring(0, images, 28, CPU)
    assert not is_worth_measuring(10**9, images, 28, torch.device("cuda"))
    assert not is_worth_measuring(10**9, torch.zeros(1, 64), 256, CPU)
    assert quickest_batch_size(lambda _: None, torch.zeros(1, 1), 1) in (1, 2)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Measuring pays for any number of images, and finds 3 first, then 4, and so on."""
    found: list[int] = []

    def measure(encode: Any, x: Tensor, rule: int) -> int:
        encode(x[:2])  # what it is given does encode
        found.append(3 + len(found))
        return found[-1]

    monkeypatch.setattr(batch_size, "_WORTH", 0)
    monkeypatch.setattr("protocl.backbones.features.quickest_batch_size", measure)
    return found


def test_what_was_measured_is_kept_beside_the_features(
    tmp_path: Path, measured: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    cache, data, backbone = FeatureCache(tmp_path), pictures(), Counting()
    assert [cache.quickest_batch_size(data, backbone) for _ in range(2)] == [3, 3]
    assert cache.quickest_batch_size(data, Counting(2.0)) == 4  # another backbone
    (record,) = tmp_path.glob(f"{cache.path(_key(backbone), 'x').parent.name}/*.json")
    for damaged in ('{"batch_size": 0}', "[3]", "{", '{"batch_size": true}', "\xff", ""):
        record.write_bytes(damaged.encode("latin-1"))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "protocl"):
            assert cache.quickest_batch_size(data, backbone) == measured[-1]
        assert record.name in caplog.text
    assert len(measured) == 2 + 6


def _key(backbone: nn.Module) -> str:
    from protocl.backbones import fingerprint

    return fingerprint(backbone)


def test_features_that_are_there_are_not_computed_again(
    tmp_path: Path, measured: list[int]
) -> None:
    cache, data, backbone = FeatureCache(tmp_path), pictures(), Counting()
    cache.encode(data, backbone)
    assert cache.quickest_batch_size(data, backbone) == 256  # the rule
    assert not measured


def test_features_of_another_batch_size_are_others(tmp_path: Path) -> None:
    cache, data, backbone = FeatureCache(tmp_path), pictures(), Counting()
    for size in (None, 4, 256, 4):  # 256 is the rule
        cache.encode(data, backbone, batch_size=size)
    assert backbone.seen == 2 * 13
    assert len(files(tmp_path)) == 2 * 2


def settings(folder: Path, *more: str) -> Any:
    (config,) = load([
        "benchmark=digits", "benchmark.train_per_class=4", "benchmark.test_per_class=2",
        "strategy=nearest_mean", "backbone=conv4", "name=r", f"output={folder}/runs",
        f"cache={folder}/cache", *more,
    ])  # fmt: skip
    return config


def run(config: Any) -> Path:
    """The folder of a run as far as its features."""
    folder = open_run(config)
    prepare(RunContext("experiment", config, folder))
    return folder


def test_a_run_writes_the_size_that_it_measured(tmp_path: Path, measured: list[int]) -> None:
    config = settings(tmp_path)
    folder = open_run(config)
    run_experiment(config, folder)
    assert kept_setting(folder, "encoding_batch") == 3
    assert '"batch_size": 3' in (folder / "model" / "model.json").read_text()
    again = load([f"experiment={folder / 'config.yaml'}", f"cache={tmp_path}/other"])[0]
    assert again.encoding_batch == 3
    run(again)
    assert measured == [3]
    names = {file.stem.partition("-")[2] for file in files(tmp_path / "other")}
    assert names == {"3"}


def test_a_resumed_run_goes_on_with_its_size(tmp_path: Path, measured: list[int]) -> None:
    folder = run(settings(tmp_path))
    for file in (tmp_path / "cache").rglob("*"):
        file.is_dir() or file.unlink()
    config = settings(tmp_path, "resume=true")
    assert run(config) == folder
    assert {file.stem.partition("-")[2] for file in files(tmp_path / "cache")} == {"3"}
    assert kept_setting(folder, "resume") is False
    assert measured == [3]
    assert open_run(settings(tmp_path, "resume=true", "encoding_batch=3")) == folder
    for other in ("encoding_batch=4", "encoding_batch=fixed"):
        assert open_run(settings(tmp_path, "resume=true", other)) != folder


@pytest.mark.parametrize(
    ("asked", "size"),
    [(["strategy.sums.exact=true"], None), (["encoding_batch=fixed"], "fixed"),
     (["encoding_batch=5"], 5), (["strategy.sums.exact=true", "encoding_batch=tuned"], 3)],
)  # fmt: skip
def test_exact_sums_and_numbers_are_not_measured(
    asked: list[str], size: Any, tmp_path: Path, measured: list[int]
) -> None:
    folder = run(settings(tmp_path, *asked))
    assert kept_setting(folder, "encoding_batch") == size
    assert measured == ([3] if size == 3 else [])


def test_without_measuring_nothing_is_written(tmp_path: Path) -> None:
    folder = run(settings(tmp_path))
    assert kept_setting(folder, "encoding_batch") is None


@pytest.mark.parametrize("value", ["0", "quick", "1.5", "-3"])
def test_other_sizes_are_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"encoding_batch.*expected"):
        settings(tmp_path, f"encoding_batch={value}")


def test_features_do_not_hang_on_the_size_by_more_than_their_last_bits() -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(27, 8))
    x = torch.rand(20, 3, 3, 3)
    torch.testing.assert_close(extract(backbone, x, batch_size=3), extract(backbone, x))
