"""predict, teach, forget, merge, info: a model on the command line."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import re
import shutil
import signal
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import SafetensorError

from protocl import load_model
from protocl.cli.main import main
from protocl.model import PrototypeClassifier
from tests.runner.test_experiment import run

COLOURS = {"red": (220, 30, 20), "green": (30, 200, 40), "blaugrün": (20, 160, 170)}


def paint(file: Path, colour: tuple[int, int, int], seed: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    noise = rng.integers(-20, 20, (size[1], size[0], 3))
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(file)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train/CLASS/*.png`` of different sizes, and ``test`` alike."""
    root = tmp_path_factory.mktemp("my pictures")
    for part, count in (("train", 4), ("test", 2)):
        for name, colour in COLOURS.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                paint(root / part / name / f"{i}.png", colour, i, (12 + 3 * i, 14))
    return root


NEW = ("--new", "--backbone", "conv4", "--image-size", "16", "--head", "nearest_mean")


@pytest.fixture(scope="module")
def taught(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("models") / "colours"
    assert main(["teach", str(model), *NEW, str(pictures / "train")]) == 0
    return model


def copy(model: Path, to: Path) -> Path:
    to.mkdir()
    for file in model.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


class TestPredict:
    def test_pictures_of_a_folder(self, taught: Path, pictures: Path, capsys: Any):
        assert main(["predict", str(taught), str(pictures / "test"), "--json", "--top", "2"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert len(lines) == 6
        for line in lines:
            assert line["label"] == Path(line["file"]).parent.name
            assert [set(guess) for guess in line["best"]] == 2 * [{"label", "score", "probability"}]
            assert 0 <= line["unknown"] <= 1

    def test_the_same_as_in_python(self, taught: Path, pictures: Path, capsys: Any):
        files = sorted((pictures / "test").rglob("*.png"))
        main(["predict", str(taught), *map(str, files), "--csv", "--top", "3"])
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        model = load_model(taught)
        expected = model.scores([str(file) for file in files])
        for n, file in enumerate(files):
            mine = [row for row in rows if row["file"] == str(file)]
            assert [row["rank"] for row in mine] == ["1", "2", "3"]
            scores = [float(row["score"]) for row in mine]
            np.testing.assert_allclose(scores, np.sort(expected[n])[::-1], rtol=1e-12)

    def test_for_people(self, taught: Path, pictures: Path, capsys: Any):
        main(["predict", str(taught), str(pictures / "test" / "red" / "0.png")])
        assert re.search(r"0\.png  red \d+\.\d %   unknown \d+ %", capsys.readouterr().out)

    def test_a_damaged_file_is_named_and_the_others_are_answered(
        self, taught: Path, pictures: Path, tmp_path: Path, capsys: Any
    ):
        (tmp_path / "cut.png").write_bytes((pictures / "test/red/0.png").read_bytes()[:80])
        good = pictures / "test/red/1.png"
        assert main(["predict", str(taught), str(tmp_path / "cut.png"), str(good), "--csv"]) == 3
        captured = capsys.readouterr()
        assert "cut.png cannot be read as an image" in captured.err
        assert str(good) in captured.out

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["nowhere.png"], "nowhere.png does not exist"),
            (["--top", "0"], "top=0: expected at least 1"),
        ],
    )
    def test_what_it_refuses(
        self, taught: Path, pictures: Path, capsys: Any, words: list[str], message: str
    ):
        file = [] if "nowhere.png" in words else [str(pictures / "test/red/0.png")]
        assert main(["predict", str(taught), *file, *words]) != 0
        assert message in capsys.readouterr().err

    def test_a_model_of_features_takes_arrays_only(
        self, pictures: Path, tmp_path: Path, capsys: Any
    ):
        PrototypeClassifier("lda").fit(np.eye(4), [0, 0, 1, 1]).save(tmp_path / "model")
        np.save(tmp_path / "x.npy", np.eye(4))
        assert main(["predict", str(tmp_path / "model"), str(tmp_path / "x.npy"), "--csv"]) == 0
        assert f"{tmp_path / 'x.npy'}[3],1,1," in capsys.readouterr().out
        words = ["predict", str(tmp_path / "model"), str(pictures / "test/red/0.png")]
        assert main(words) == 3
        assert "takes features" in capsys.readouterr().err

    def test_a_run_is_a_model(self, tmp_path: Path, capsys: Any):
        _, folder = run(tmp_path, "strategy=slda", "benchmark=digits")
        np.save(tmp_path / "x.npy", np.zeros((2, 1, 8, 8), dtype=np.float32))
        assert main(["predict", str(folder), str(tmp_path / "x.npy")]) == 0
        assert main(["info", str(folder)]) == 0
        assert "LinearDiscriminant" in capsys.readouterr().out


class TestTeach:
    def test_a_new_class_from_a_few_pictures(self, taught: Path, pictures: Path, tmp_path: Path):
        model = copy(taught, tmp_path / "model")
        for i in range(3):
            paint(tmp_path / f"{i}.png", (240, 230, 30), i, (20, 20))
        files = [str(tmp_path / f"{i}.png") for i in range(3)]
        assert main(["teach", str(model), "--class", "gelb 1", *files[:2]]) == 0
        read = load_model(model)
        assert read.predict(files[2]) == ["gelb 1"]
        assert read.predict(str(pictures / "test/red/0.png")) == ["red"]

    def test_taught_in_any_order_it_is_the_same_bytes(
        self, taught: Path, pictures: Path, tmp_path: Path
    ):
        words = [*NEW]
        for name in reversed(COLOURS):
            files = map(str, sorted((pictures / "train" / name).iterdir(), reverse=True))
            assert main(["teach", str(tmp_path / "m"), *words, "--class", name, *files]) == 0
            words = []
        assert content(tmp_path / "m") == content(taught)

    def test_one_unreadable_picture_and_nothing_is_learned(
        self, taught: Path, pictures: Path, tmp_path: Path, capsys: Any
    ):
        model = copy(taught, tmp_path / "model")
        (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n")
        good = str(pictures / "train/red/0.png")
        words = ["teach", str(model), "--class", "red", good, str(tmp_path / "cut.png")]
        assert main(words) == 3
        assert "cut.png" in capsys.readouterr().err
        assert content(model) == content(taught)

    def test_a_misspelt_model_is_not_made(self, pictures: Path, tmp_path: Path, capsys: Any):
        assert main(["teach", str(tmp_path / "nowhere"), str(pictures / "train")]) == 3
        assert "is no model" in capsys.readouterr().err
        assert not (tmp_path / "nowhere").exists()

    def test_new_does_not_replace_a_model(self, taught: Path, pictures: Path, capsys: Any):
        before = content(taught)
        assert main(["teach", str(taught), *NEW, str(pictures / "train")]) == 2
        assert "is a model already" in capsys.readouterr().err
        assert content(taught) == before

    def test_a_trained_model_learns_no_more(self, tmp_path: Path, pictures: Path, capsys: Any):
        _, folder = run(
            tmp_path, "strategy=naive", "strategy.train_epochs=1", "backbone=conv4",
            "backbone.width=4", "benchmark.train_per_class=4", "benchmark.n_experiences=1",
        )  # fmt: skip
        words = ["teach", str(folder), "--class", "x", str(pictures / "train/red/0.png")]
        assert main(words) == 2
        assert "keeps no statistics" in capsys.readouterr().err


class TestForget:
    def test_a_class_is_as_if_never_taught(self, taught: Path, pictures: Path, tmp_path: Path):
        model = copy(taught, tmp_path / "model")
        assert main(["forget", str(model), "--class", "red"]) == 0
        words = [*NEW]
        for name in ("green", "blaugrün"):
            folder = str(pictures / "train" / name)
            assert main(["teach", str(tmp_path / "never"), *words, "--class", name, folder]) == 0
            words = []
        assert content(model) == content(tmp_path / "never")

    def test_samples_are_as_if_never_taught(self, taught: Path, pictures: Path, tmp_path: Path):
        model, extra = copy(taught, tmp_path / "model"), str(pictures / "test/red/0.png")
        assert main(["teach", str(model), "--class", "red", extra]) == 0
        assert content(model) != content(taught)
        assert main(["forget", str(model), "--class", "red", "--samples", extra]) == 0
        assert content(model) == content(taught)

    def test_an_unknown_class_is_named(self, taught: Path, capsys: Any):
        assert main(["forget", str(taught), "--class", "otter"]) == 3
        assert "otter" in capsys.readouterr().err

    def test_without_second_moments_of_each_class_it_explains(
        self, pictures: Path, tmp_path: Path, capsys: Any
    ):
        words = ["teach", str(tmp_path / "m"), *NEW, "--forgettable", "no"]
        assert main([*words, str(pictures / "train")]) == 0
        before = content(tmp_path / "m")
        assert main(["forget", str(tmp_path / "m"), "--class", "red"]) == 3
        assert "give the samples" in capsys.readouterr().err
        assert content(tmp_path / "m") == before


def test_merged_models_know_what_both_know(taught: Path, pictures: Path, tmp_path: Path):
    parts = []
    for name in COLOURS:
        parts.append(str(tmp_path / name))
        words = ["teach", parts[-1], *NEW, "--class", name, str(pictures / "train" / name)]
        assert main(words) == 0
    assert main(["merge", *parts, "-o", str(tmp_path / "all")]) == 0
    assert content(tmp_path / "all") == content(taught)


@pytest.mark.parametrize("trained", [False, True])
def test_an_exported_model_answers_as_the_model(
    trained: bool, taught: Path, pictures: Path, tmp_path: Path
):
    runtime = pytest.importorskip("onnxruntime")
    model = taught
    if trained:
        _, model = run(
            tmp_path, "strategy=naive", "strategy.train_epochs=1", "backbone=conv4",
            "backbone.width=4", "benchmark.train_per_class=4", "benchmark.n_experiences=1",
        )  # fmt: skip
    assert main(["export", str(model), "--onnx", str(tmp_path / "out" / "m.onnx")]) == 0
    read = load_model(model)
    x = np.random.default_rng(0).integers(0, 256, (5, *read.encoder_.shape), dtype=np.uint8)
    session = runtime.InferenceSession(tmp_path / "out" / "m.onnx")
    (logits,) = session.run(["logits"], {"images": x})
    names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    columns = [names.index(label) for label in read.classes_]
    expected = read.scores(x)
    np.testing.assert_allclose(logits[:, columns], expected, atol=1e-5 * abs(expected).max())


def killed_while(work: Callable[[], None], file: Path, seconds: float) -> None:
    """Do ``work`` over and over in a process that is killed soon after ``file`` has changed."""
    before = file.stat().st_ino
    child = os.fork()
    if child == 0:
        while True:
            work()
    while file.stat().st_ino == before:
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_killed_while_teaching_it_is_the_model_before_or_after(tmp_path: Path):
    x = np.random.default_rng(0).random((6, 3))
    model = PrototypeClassifier("lda", exact=True).fit(x, 6 * ["a"])
    model.partial_fit(x + 1, 6 * ["b"])
    model.save(tmp_path / "m")

    def teach() -> None:
        read = PrototypeClassifier.load(tmp_path / "m")
        read.partial_fit(x[:2], ["a", "a"]).save(tmp_path / "m")

    random.seed(7)
    totals = []
    for _ in range(50):
        killed_while(teach, tmp_path / "m" / "memory.safetensors", random.uniform(0.0, 0.05))
        read = PrototypeClassifier.load(tmp_path / "m")
        totals.append(read.memory_.total)
        assert read.classes_.tolist() == ["a", "b"]
        assert (read.memory_.total - 12) % 2 == 0
    assert totals == sorted(set(totals))


def test_one_model_by_several_ways_is_changed_by_one_at_a_time(
    taught: Path, pictures: Path, tmp_path: Path, monkeypatch: Any
):
    copy(taught, tmp_path / "model")
    (tmp_path / "link").symlink_to("model")
    held: list[Path] = []

    @contextlib.contextmanager
    def locked(path: Path) -> Iterator[None]:
        held.append(path)
        yield

    monkeypatch.setattr("protocl.model.changes.owner.locked", locked)
    monkeypatch.chdir(tmp_path / "model")
    for way in (tmp_path / "model", tmp_path / "link", Path()):
        assert main(["teach", str(way), "--class", "red", str(pictures / "test" / "red")]) == 0
    assert len(set(held)) == 1


def test_merging_replaces_no_third_model(taught: Path, tmp_path: Path, capsys: Any):
    one, other = copy(taught, tmp_path / "one"), copy(taught, tmp_path / "other")
    third = copy(taught, tmp_path / "third")
    before = content(third)
    assert main(["merge", str(one), str(other), "-o", str(third)]) == 2
    assert "is a model already" in capsys.readouterr().err
    assert content(third) == before
    assert main(["merge", str(one), str(other), "-o", str(one)]) == 0
    assert load_model(one).memory_.total == 2 * load_model(other).memory_.total


def test_a_name_written_in_two_ways_is_one_class(taught: Path, pictures: Path, tmp_path: Path):
    model = copy(taught, tmp_path / "model")
    decomposed = unicodedata.normalize("NFD", "blaugrün")
    folder = tmp_path / "more" / decomposed
    shutil.copytree(pictures / "train" / "blaugrün", folder)
    assert main(["teach", str(model), str(folder.parent)]) == 0
    assert sorted(load_model(model).classes_.tolist()) == sorted(COLOURS)
    assert main(["forget", str(model), "--class", decomposed]) == 0
    assert "blaugrün" not in load_model(model).classes_


def test_file_names_that_are_no_unicode(taught: Path, pictures: Path, tmp_path: Path, capsys: Any):
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/pictures/caf\xe9"))
    try:
        shutil.copytree(pictures / "test" / "red", folder)
    except OSError:
        pytest.skip("this file system takes Unicode only")
    assert main(["predict", str(taught), str(folder), "--json"]) == 0
    out = capsys.readouterr().out
    out.encode()  # can be printed
    assert json.loads(out.splitlines()[0])["label"] == "red"
    assert main(["teach", str(copy(taught, tmp_path / "model")), str(folder.parent)]) == 3
    assert "rename it" in capsys.readouterr().err


def test_room_for_forgetting_is_that_of_all_classes_of_the_first_lesson(
    pictures: Path, tmp_path: Path, monkeypatch: Any
):
    assert main(["teach", str(tmp_path / "small"), *NEW, str(pictures / "train")]) == 0
    memory = load_model(tmp_path / "small").memory_
    assert memory.level == "full"
    enough = memory.bytes_for(len(COLOURS), "full") - 1
    monkeypatch.setattr("protocl.model.classifier.FORGETTABLE_BYTES", enough)
    assert main(["teach", str(tmp_path / "large"), *NEW, str(pictures / "train")]) == 0
    assert load_model(tmp_path / "large").memory_.level == "shared"


def test_a_full_disk_is_said_and_leaves_the_model(
    taught: Path, pictures: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
):
    model = copy(taught, tmp_path / "model")
    before = content(model)

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("protocl.memory.file.save_file", full)
    assert main(["teach", str(model), "--class", "red", str(pictures / "test" / "red")]) == 1
    message = capsys.readouterr().err
    assert "memory.safetensors cannot be written" in message
    assert "No space left" in message
    assert content(model) == before


def test_settings_of_a_new_model_are_not_ignored(taught: Path, pictures: Path, capsys: Any):
    for option in (["--head", "lda"], ["--image-size", "8"], ["--forgettable", "no"]):
        assert main(["teach", str(taught), *option, str(pictures / "train")]) == 2
        assert f"{option[0]} is for a new model" in capsys.readouterr().err


def test_explain_says_why(pictures, tmp_path, capsys):
    model = tmp_path / "m ö"
    teach = ["teach", str(model), "--new", "--backbone", "conv4", "--image-size", "16"]
    assert main([*teach, "--head", "lda", str(pictures / "train")]) == 0
    asked = str(pictures / "test" / "red" / "0.png")
    capsys.readouterr()
    assert main(["explain", str(model), asked, "--beside", str(pictures / "train")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"red +\d+\.\d %, 0 behind, prototype of 4 samples", shown)
    assert "because classes overlap" in shown
    assert re.search(r"like .*red.*\(cosine 0\.\d+|like .*red.*\(cosine 1\.0", shown)
    assert main(["explain", str(model), asked, "--top", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["label"] == "red"
    assert len(found["prototypes"]) == 2
    assert found["samples"] == []
    assert main(["explain", str(model), str(tmp_path / "none.png")]) != 0
