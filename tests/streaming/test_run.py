"""A stream gives the model that all samples in one place give, however it is read."""

from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protocl import PrototypeMemory, load_model
from protocl.backbones import BackboneConfig
from protocl.cli.main import main
from protocl.data.shards.sources import Fields
from protocl.errors import ConfigError, DataError
from protocl.streaming import StreamConfig, accumulator, progress, run, stream
from tests.data.shards.written import (
    digits,
    feature_columns,
    pictures,
    vectors,
    write_parquet,
    write_tar,
)

SMALL = StreamConfig(head="lda", batch_size=16)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """300 digits in four shards of two kinds, one of them compressed."""
    folder = tmp_path / "shards ü"
    folder.mkdir()
    write_tar(folder / "a.tar", vectors(range(100)))
    write_tar(folder / "b.tar.gz", vectors(range(100, 150)), "w:gz")
    write_parquet(folder / "c.parquet", feature_columns(range(150, 290)), row_group_size=37)
    write_tar(folder / "d.tar", vectors(range(290, 300)))
    return folder


def statistics(model: Path) -> bytes:
    return (model / "memory.safetensors").read_bytes()


def test_it_is_the_memory_of_all_samples(shards: Path, tmp_path: Path) -> None:
    done = stream([str(shards)], tmp_path / "model", SMALL)
    x, y = digits()
    whole = PrototypeMemory(64, "shared", exact=True).update(
        torch.from_numpy(x[:300].reshape(300, 64)).float(), torch.from_numpy(y[:300])
    )
    memory = PrototypeMemory.load(tmp_path / "model" / "memory.safetensors")
    assert done.samples == memory.total == 300
    assert torch.equal(memory.counts, whole.counts)
    assert torch.equal(memory.sums, whole.sums)
    assert torch.equal(memory.second_moment, whole.second_moment)
    known: Any = load_model(tmp_path / "model")
    flat = x.reshape(-1, 64).astype(np.float32)
    assert known.score(flat[300:900], y[300:900]) > 0.75
    assert not (tmp_path / "model.streaming").exists()


def test_workers_and_the_order_of_shards_change_no_bit(shards: Path, tmp_path: Path) -> None:
    for image in range(3):
        write_tar(shards / f"{image}.tar", pictures(range(20 * image, 20 * image + 15)))
    images = [str(file) for file in shards.glob("?.tar") if file.stem.isdecimal()]
    config = {"backbone": BackboneConfig(name="conv4", width=4), "batch_size": 4}
    stream(images, tmp_path / "one", StreamConfig(**config))  # type: ignore[arg-type]
    for place, file in enumerate(sorted(images, reverse=True)):
        Path(file).rename(shards / f"renamed {place}.tar")
    renamed = [str(file) for file in shards.glob("renamed*")]
    stream(renamed, tmp_path / "two", StreamConfig(workers=2, **config))  # type: ignore[arg-type]
    assert statistics(tmp_path / "one") == statistics(tmp_path / "two")


def test_parts_merge_to_the_whole(shards: Path, tmp_path: Path) -> None:
    command = ["stream", "--head", "lda", "--batch-size", "16"]
    assert main([*command, str(tmp_path / "all"), str(shards)]) == 0
    for part in ("1/2", "2/2"):
        assert main([*command, str(tmp_path / part[0]), str(shards), "--part", part]) == 0
    both = [str(tmp_path / "1"), str(tmp_path / "2")]
    assert main(["merge", *both, "-o", str(tmp_path / "merged")]) == 0
    assert statistics(tmp_path / "merged") == statistics(tmp_path / "all")


class TestKilled:
    """At any of the moments at which something is done, and continued."""

    def test_each_sample_counts_once(self, tmp_path: Path) -> None:
        shards = tmp_path / "few"
        shards.mkdir()
        write_tar(shards / "a.tar", vectors(range(20)))
        write_parquet(shards / "b.parquet", feature_columns(range(20, 37)))
        config = StreamConfig(head="lda", batch_size=16, save_every=0.0, resume=True)
        stream([str(shards)], tmp_path / "whole", config)
        moments = 0
        for moment in itertools.count(step=4):
            model = tmp_path / f"model {moment}"
            if _ended_by(stream_killed, shards, model, config, moment) == 0:
                break
            moments += 1
            with contextlib.suppress(ConfigError):  # killed after all had been done
                stream([str(shards)], model, config)
            assert statistics(model) == statistics(tmp_path / "whole"), moment
            shutil.rmtree(model)
        assert moments > 6


def stream_killed(shards: Path, model: Path, config: StreamConfig, moment: int) -> None:
    """Stream, and be killed when something is done for the ``moment``-th time."""
    moments = iter(range(10**6))

    def before(action: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **named: Any) -> Any:
            if next(moments) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return action(*arguments, **named)

        return act

    progress._SHARE, accumulator._AT_ONCE = 0, 8
    for home, name in (
        (PrototypeMemory, "update"), (PrototypeMemory, "save"), (progress, "atomic_write"),
        (run, "save_model"), (run, "atomic_write"), (Path, "unlink"), (Path, "replace"),
    ):  # fmt: skip
        setattr(home, name, before(getattr(home, name)))
    stream([str(shards)], model, config)


def _ended_by(target: Callable[..., None], *arguments: Any) -> int | None:
    child = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    child.start()
    child.join()
    return child.exitcode


class TestContinued:
    @pytest.fixture
    def begun(self, shards: Path, tmp_path: Path) -> Path:
        """A stream that was killed when part of it was written."""
        config = StreamConfig(head="lda", batch_size=16, save_every=0.0)
        assert _ended_by(stream_killed, shards, tmp_path / "model", config, 40) == -signal.SIGKILL
        return tmp_path / "model"

    def test_takes_a_word(self, begun: Path, shards: Path) -> None:
        with pytest.raises(ConfigError, match="--resume"):
            stream([str(shards)], begun, SMALL)

    @pytest.mark.parametrize(
        ("changes", "named"),
        [({"head": "ridge"}, "--head lda, not ridge"), ({"batch_size": 8}, "--batch-size 16"),
         ({"step": 0.5}, "--step")],
    )  # fmt: skip
    def test_refuses_other_settings(
        self, begun: Path, shards: Path, changes: dict[str, Any], named: str
    ) -> None:
        config = {"head": "lda", "batch_size": 16, "resume": True, **changes}
        with pytest.raises(ConfigError, match=named):
            stream([str(shards)], begun, StreamConfig(**config))

    def test_refuses_shards_that_have_changed(self, begun: Path, shards: Path) -> None:
        config = StreamConfig(head="lda", batch_size=16, resume=True)
        write_tar(shards / "a.tar", vectors(range(90)))
        with pytest.raises(DataError, match=r"a\.tar has changed"):
            stream([str(shards)], begun, config)
        write_tar(shards / "more.tar", vectors(range(90)))
        with pytest.raises(ConfigError, match="other shards"):
            stream([str(shards)], begun, config)

    def test_refuses_damaged_progress(self, begun: Path, shards: Path) -> None:
        file = begun.with_name("model.streaming") / "progress.json"
        file.write_text(file.read_text()[:-20])
        with pytest.raises(DataError, match="begin anew"):
            stream([str(shards)], begun, StreamConfig(head="lda", batch_size=16, resume=True))


class TestRefused:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_damaged_shard_stops_it_or_is_counted(
        self, shards: Path, tmp_path: Path, workers: int
    ) -> None:
        content = (shards / "a.tar").read_bytes()
        (shards / "a.tar").write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=r"a\.tar is damaged or cut short after sample \d\d "):
            stream([str(shards)], tmp_path / "model", StreamConfig(head="lda", workers=workers))
        assert not (tmp_path / "model").exists()
        skip = StreamConfig(head="lda", workers=workers, on_error="skip", resume=True)
        done = stream([str(shards)], tmp_path / "model", skip)
        assert done.skipped == {"damaged shard": 1}
        assert 230 < done.samples < 260
        assert '"damaged shard": 1' in (tmp_path / "model" / "stream.json").read_text()

    def test_a_model_that_is_there(self, shards: Path, tmp_path: Path) -> None:
        stream([str(shards)], tmp_path / "model", SMALL)
        with pytest.raises(ConfigError, match="is a model already"):
            stream([str(shards)], tmp_path / "model", SMALL)

    @pytest.mark.parametrize("name", ["file", "folder", "."])
    def test_what_is_no_model_before_anything_is_read(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("file").touch()
        (tmp_path / "folder" / "notes").mkdir(parents=True)
        monkeypatch.setattr(run, "shards_of", None)
        with pytest.raises(ConfigError, match=r"something else|no name"):
            stream([str(shards)], Path(name), SMALL)

    def test_a_full_disk_says_what_to_do(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(progress, "atomic_write", full)
            with pytest.raises(DataError, match=r"model cannot be .*No space.*--resume"):
                stream([str(shards)], tmp_path / "model", SMALL)
        config = StreamConfig(head="lda", batch_size=16, resume=True)
        assert stream([str(shards)], tmp_path / "model", config).samples == 300

    def test_labels_of_two_kinds(self, shards: Path, tmp_path: Path) -> None:
        write_tar(shards / "z.tar", [*vectors([3])[:1], ("v/00003.cls", b"three")])
        with pytest.raises(DataError, match=r"z\.tar has the label 'three'"):
            stream([str(shards)], tmp_path / "model", SMALL)

    def test_a_feature_that_does_not_fit(self, shards: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"a\.tar: sample 'v/00000': .*use a larger step"):
            stream([str(shards)], tmp_path / "model", StreamConfig(head="lda", step=2.0**-60))

    @pytest.mark.parametrize(
        "settings",
        [{"part": (3, 2)}, {"part": (9, 9)}, {"workers": -1}, {"batch_size": 0}, {"step": 0.0},
         {"on_error": "ignore"}, {"classes": ("a", "a")}, {"head": "none"},
         {"backbone": BackboneConfig(layers="all", layer_scale="std")}],
    )  # fmt: skip
    def test_settings(self, shards: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            stream([str(shards)], tmp_path / "model", StreamConfig(**settings))

    def test_nothing_that_can_be_read(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "a.tar", [("a.npy", b"none"), ("a.cls", b"1")])
        with pytest.raises(DataError, match="sample 'a' "):
            stream([str(tmp_path)], tmp_path / "m", StreamConfig(on_error="skip"))


def test_declared_classes_are_the_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", vectors(range(30)))
    names = tuple(f"digit {number}" for number in range(10))
    stream([str(tmp_path / "a.tar")], tmp_path / "m", StreamConfig(classes=names))
    known: Any = load_model(tmp_path / "m")
    assert set(known.classes_) == set(names)
    with pytest.raises(DataError, match="label '9'"):
        stream([str(tmp_path / "a.tar")], tmp_path / "n", StreamConfig(classes=names[:9]))


def test_one_sample_and_other_fields(tmp_path: Path) -> None:
    columns = feature_columns(range(1)) | {"species": ["otter"]}
    write_parquet(tmp_path / "one.parquet", columns)
    fields = Fields(label="species", features=("embedding",))
    done = stream([str(tmp_path)], tmp_path / "m", StreamConfig(head="nearest_mean", fields=fields))
    assert (done.samples, list(done.labels.values())) == (1, ["otter"])
