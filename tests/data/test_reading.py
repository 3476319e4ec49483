"""Threads that read files change neither their order nor what is said of a damaged one."""

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from protocl.backbones import Backbone
from protocl.data import BenchmarkConfig, load_data
from protocl.data.pictures import pixels_of, read_picture
from protocl.data.readers.in_order import read_in_order
from protocl.errors import DataError
from protocl.model.encoder import Encoder

N = 100


@pytest.fixture(params=[1, 4], ids=["one thread", "four threads"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    yield request.param
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reading")]


def fill(folder: Path, n: int) -> list[Path]:
    """``n`` images, each with its number as its colour."""
    folder.mkdir(parents=True)
    files = [folder / f"bild {i:03d} ü.png" for i in range(n)]
    for i, file in enumerate(files):
        Image.fromarray(np.full((3 + i % 2, 4, 3), i, dtype=np.uint8)).save(file)
    return files


@pytest.mark.parametrize("n", [0, 1, 63, 64, 257])
def test_the_order_stays(n: int, threads: int) -> None:
    assert list(read_in_order(lambda i: 2 * i, range(n))) == [2 * i for i in range(n)]


def test_few_files_start_no_thread(threads: int) -> None:
    names = set(read_in_order(lambda _: threading.current_thread().name, range(63)))
    assert names == {threading.current_thread().name}
    many = set(read_in_order(lambda _: threading.current_thread().name, range(200)))
    assert (threading.current_thread().name in many) == (threads == 1)


def test_no_more_is_read_than_is_asked_for(threads: int) -> None:
    seen: list[int] = []
    reading = read_in_order(seen.append, range(10_000))
    for _ in range(10):
        next(reading)
    reading.close()
    assert len(seen) <= 10 + 5 * threads


def test_a_folder_is_read_as_its_files_are(tmp_path: Path, threads: int) -> None:
    files = fill(tmp_path / "train" / "a", N)
    fill(tmp_path / "test" / "a", 1)
    before = warnings.filters[:]
    data = load_data(BenchmarkConfig("image_folder", path=str(tmp_path), image_size=3))
    assert warnings.filters == before
    expected = torch.stack([pixels_of(read_picture(file), 3) for file in files])
    assert torch.equal(data.x_train, expected)


def test_the_first_damaged_file_is_named(tmp_path: Path, threads: int) -> None:
    files = fill(tmp_path / "train" / "a", N)
    fill(tmp_path / "test" / "a", 1)
    for file in (files[41], files[40], files[99]):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match=r"bild 040 ü\.png cannot be read as an image"):
        load_data(BenchmarkConfig("image_folder", path=str(tmp_path), image_size=3))


def test_the_first_image_of_another_size_is_named(tmp_path: Path, threads: int) -> None:
    fill(tmp_path / "train" / "a", N)
    fill(tmp_path / "test" / "a", 1)
    with pytest.raises(DataError, match=r"bild 001 ü\.png is 4x4 pixels where others are 4x3"):
        load_data(BenchmarkConfig("image_folder", path=str(tmp_path)))


@pytest.mark.parametrize("kind", ["png", "ico", "gif"])
def test_what_pillow_only_warns_about_is_refused(
    kind: str, tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More pixels than Pillow takes for honest, fewer than it refuses itself."""
    file = tmp_path / f"a.{kind}"
    Image.new("RGB", (32, 32)).save(file, **({"sizes": [(32, 32)]} if kind == "ico" else {}))
    assert read_picture(file).size == (32, 32)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for _ in read_in_order(lambda n: complain(file), range(N)):
        pass


def complain(file: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read as an image: .*1024 pixels"):
        read_picture(file)


def test_a_model_reads_files_as_it_reads_pictures(tmp_path: Path, threads: int) -> None:
    files = fill(tmp_path / "a", N)
    encoder = Encoder(Backbone(nn.Flatten(), 27, architecture="pixels"), (3, 3, 3))
    pictures = [Image.open(file) for file in files]
    assert torch.equal(encoder(files), encoder(pictures))
    twice = [Image.open(files[5])] * N  # one picture, decoded when it is first used
    assert torch.equal(encoder(twice), encoder([files[5]] * N))
